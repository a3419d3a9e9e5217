// How kernels are launched: the one launch macro, the launch shape, the form in which kernels take matrices and the
// rule for 16-byte access.
// Knows kernels.h and the CUDA runtime, or in tests the header that emulates it on the CPU.
#pragma once

#if defined(GELU_EXT_EMULATE_CUDA)
#include "cuda_emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "../kernels.h"

#ifndef GELU_EXT_LAUNCH  // the emulator brings its own; put a kernel with commas in its name in parentheses
#define GELU_EXT_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#endif

namespace gelu_ext::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kVectorBytes = 16;

// Elements a thread handles in each row.
constexpr int elements_per_thread(DType dtype) { return kVectorBytes / static_cast<int>(size_of(dtype)); }

// Chosen per kernel from its machine code, for bytes in flight without spilling: `unroll` rows are loaded before the
// first is used; `blocks` must fit on a multiprocessor at once, which limits their registers.
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

// The second argument of __launch_bounds__. Turing runs 1024 threads, all later ones at least 1536.
constexpr int resident_blocks(Tuning tuning) {
  const int most = kArchitecture != 0 && kArchitecture < 800 ? 4 : 6;
  return tuning.blocks < most ? tuning.blocks : most;
}

// A block is `lanes` threads along a row times kThreads / lanes rows. The grid is `tiles` blocks along a row times
// `chunks` down the rows; each block strides down to its next rows by chunks * kThreads / lanes.
// The shape depends on the sizes and the device alone, not on where the data lies, so that sums over rows repeat
// bit for bit.
struct LaunchShape {
  int lanes, chunks;
  int64_t tiles;

  int64_t row_step() const { return static_cast<int64_t>(chunks) * (kThreads / lanes); }
  dim3 grid() const { return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(chunks)); }
  dim3 block() const { return dim3(static_cast<unsigned>(lanes), static_cast<unsigned>(kThreads / lanes)); }
};

// `sums`: whether the kernel also sums columns, which makes many chunks costly. See launch.cu for the rule and for the
// environment variable that overrides it.
LaunchShape launch_shape(int64_t rows, int64_t cols, DType dtype, Tuning tuning, bool sums, const Device& device);

// The passes of a thread down the rows: `full`, and one more if its first row is below `remainder`.
struct Passes {
  int full, remainder;

  Passes(int64_t rows, const LaunchShape& shape)
      : full(static_cast<int>(rows / shape.row_step())), remainder(static_cast<int>(rows % shape.row_step())) {}
};

// A matrix as the kernels take it; lengths in bytes. `step` leads from a thread's row to its next one.
template <class Data>
struct Rows {
  Data* data;  // null: not wanted
  int64_t row_stride, step;
  uint32_t step_vectors;  // the same in units of kVectorBytes

  template <class AnyMatrix>
  Rows(const AnyMatrix& matrix, DType dtype, const LaunchShape& shape)
      : data(static_cast<Data*>(matrix.data)),
        row_stride(matrix.row_stride * static_cast<int64_t>(size_of(dtype))),
        step(row_stride * shape.row_step()),
        step_vectors(static_cast<uint32_t>(step / kVectorBytes)) {}

  bool vectors_fit(int64_t rows, const Passes& passes) const {
    if (reinterpret_cast<uintptr_t>(data) % kVectorBytes != 0) return false;
    return rows == 1 || (row_stride % kVectorBytes == 0 && (passes.full == 0 || step / kVectorBytes <= UINT32_MAX));
  }
};
using Input = Rows<const char>;
using Output = Rows<char>;

// Whether 16-byte access, and the arithmetic on addresses that goes with it, work in every row of every matrix.
template <class... Matrices>
bool vectors_fit(const Problem& p, const Passes& passes, const Matrices&... matrices) {
  const auto all_fit = [&](const auto& those) {
    return std::all_of(std::begin(those), std::end(those),
                       [&](const auto& matrix) { return matrix.vectors_fit(p.rows, passes); });
  };
  return p.cols % elements_per_thread(p.dtype) == 0 && passes.full < INT32_MAX / kVectorBytes &&
         (all_fit(matrices) && ...);
}

}  // namespace gelu_ext::cuda
