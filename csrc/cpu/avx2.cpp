// The row loops for AVX2, FMA and F16C. Standard headers come before the target region, see row_loops.h.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
// The compiler's own macros (__FMA__, ...) do not follow the pragma in C++.
#define GELU_EXT_HAS_FMA 1
#define GELU_EXT_HAS_AVX2 1
#endif

#include "instruction_set.h"

namespace gelu_ext::cpu {
#if defined(GELU_EXT_HAS_AVX2)
namespace avx2 {
#include "row_loops.h"
}  // namespace avx2
#pragma GCC pop_options

const InstructionSet* avx2_set() {
  static constexpr InstructionSet set = avx2::table("avx2", [] {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  });
  return &set;
}
#else
const InstructionSet* avx2_set() { return nullptr; }
#endif
}  // namespace gelu_ext::cpu
