// The row loops for what every processor of the architecture has: SSE2 on x86-64, NEON on aarch64.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__ARM_FEATURE_FMA)
#include <arm_neon.h>
#endif

#include "instruction_set.h"

namespace gelu_ext::cpu {
namespace baseline {
#include "row_loops.h"
}  // namespace baseline

const InstructionSet* baseline_set() {
  static constexpr InstructionSet set = baseline::table("baseline", [] { return true; });
  return &set;
}

}  // namespace gelu_ext::cpu
