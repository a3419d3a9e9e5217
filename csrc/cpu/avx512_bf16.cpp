// The row loops for AVX-512 F, BW, VL, DQ and BF16. Standard headers come before the target region, see row_loops.h.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#include <immintrin.h>
// GCC 12 sees its own _mm512_undefined_ps() as a mistake of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,prefer-vector-width=512")
// For x86 it orders instructions only once registers are assigned, too late to interleave chains of arithmetic.
#pragma GCC optimize("schedule-insns,sched-pressure")
// The compiler's own macros (__FMA__, ...) do not follow the pragma in C++.
#define GELU_EXT_HAS_FMA 1
#define GELU_EXT_HAS_AVX2 1
#define GELU_EXT_HAS_AVX512 1
#define GELU_EXT_HAS_AVX512_BF16 1
#endif

#include "instruction_set.h"

namespace gelu_ext::cpu {
#if defined(GELU_EXT_HAS_AVX512_BF16)
namespace avx512_bf16 {
#include "row_loops.h"
}  // namespace avx512_bf16
#pragma GCC pop_options

const InstructionSet* avx512_bf16_set() {
  static constexpr InstructionSet set = avx512_bf16::table("avx512_bf16", [] {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
  });
  return &set;
}
#else
const InstructionSet* avx512_bf16_set() { return nullptr; }
#endif
}  // namespace gelu_ext::cpu
