// What was chosen for each kernel from its machine code: how many rows a thread loads together, how many blocks are
// resident. tests/cuda/budgets.py counts what comes of it. Knows kernels.h, nothing else.
#pragma once

#include "../kernels.h"

namespace gelu_ext::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kVectorBytes = 16;

// Elements a thread handles in each row.
constexpr int elements_per_thread(DType dtype) { return kVectorBytes / static_cast<int>(size_of(dtype)); }

// For bytes in flight without spilling: `unroll` rows are loaded before the first is used; `blocks` must fit on a
// multiprocessor at once, which limits their registers.
struct Tuning {
  int unroll, blocks;
};

// What is by rule; or, in a build for `make gpu ARGS=--tune`, what that tries.
constexpr Tuning tuned_by(Tuning rule) {
#if defined(GELU_EXT_CUDA_UNROLL)
  return {GELU_EXT_CUDA_UNROLL, GELU_EXT_CUDA_BLOCKS};
#else
  return rule;
#endif
}

// What a tuning is asked for by the kernel itself; the launcher asks for Device::architecture, which is the same.
#if defined(__CUDA_ARCH__)
inline constexpr int kArchitecture = __CUDA_ARCH__;
#else
inline constexpr int kArchitecture = 0;
#endif

constexpr bool is_turing(int architecture) { return architecture != 0 && architecture < 800; }

// Blocks that a multiprocessor holds, and the second argument of __launch_bounds__. Turing runs 1024 threads, all later
// ones at least 1536.
constexpr int resident_blocks(Tuning tuning, int architecture = kArchitecture) {
  const int most = is_turing(architecture) ? 4 : 6;
  return tuning.blocks < most ? tuning.blocks : most;
}

// What of an operation decides.
struct Sizes {
  int operands, vectors, parameters;

  constexpr bool has_own_vectors() const { return vectors > operands; }
};
template <class Op>
inline constexpr Sizes kSizes = {Op::operands, Op::vectors, Op::parameters};
inline Sizes sizes_of(const Problem& p) { return {p.operands(), p.vectors(), p.parameters()}; }

// Bytes in flight on a multiprocessor: blocks * 256 threads * loads that are issued together * 16. An H100 wants 32 KB,
// an H200 48, a B200 more. Most kernels have 48: 4 blocks of 3 loads. float32 with two operands has 32, as its loads
// would be delayed else.
constexpr Tuning forward_tuning(Sizes op, DType dtype, int architecture) {
  if (dtype == DType::float64) return {1, 2};
  if (op.has_own_vectors()) return tuned_by({2, 3});
  if (op.operands == 1) return tuned_by(is_turing(architecture) ? Tuning{2, 4} : Tuning{3, 4});  // it would spill
  return tuned_by(dtype == DType::float32 || architecture >= 1000 ? Tuning{1, 4} : Tuning{2, 3});
}

// Which gradients a backward kernel gives: all matrices, without or with the vectors' sums, or any others. The last,
// which is rare, asks for each matrix in its loop and always adds up.
enum class Wanted { matrices, matrices_and_sums, some };

// With two operands their biases and sums are 32 registers of a 16-bit thread: a fourth block would spill. Blackwell's
// compiler needs more, and delays loads of float32 for a fourth block. Of the rare kernels loads would be delayed too.
// An operation with parameters has a longer formula, so that there it loads one row at a time. One with vectors of its
// own has them and their sums in registers too.
constexpr Tuning backward_tuning(Sizes op, Wanted wanted, DType dtype, int architecture) {
  const bool single = dtype == DType::float32, blackwell = architecture >= 1000;
  if (dtype == DType::float64) return {1, 2};
  if (op.has_own_vectors()) return tuned_by(single ? Tuning{1, 3} : Tuning{1, 2});
  if (op.operands == 1) return tuned_by(wanted == Wanted::some && !single ? Tuning{1, 4} : Tuning{2, 4});
  if (wanted == Wanted::matrices) return tuned_by({1, 4});
  if (blackwell && op.parameters != 0) return tuned_by({1, 3});
  if (!blackwell) return tuned_by(single ? Tuning{1, 4} : Tuning{1, 3});
  return tuned_by(single ? Tuning{1, 3} : wanted == Wanted::some ? Tuning{2, 2} : Tuning{2, 3});
}

}  // namespace gelu_ext::cuda
