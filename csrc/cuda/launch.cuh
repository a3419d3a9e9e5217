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

#include "tuning.cuh"

#ifndef GELU_EXT_LAUNCH  // the emulator brings its own; put a kernel with commas in its name in parentheses
#define GELU_EXT_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define GELU_EXT_LAUNCH_EARLY(kernel, grid, block, stream, device, ...) \
  launch_early(kernel, grid, block, static_cast<cudaStream_t>(stream), device, __VA_ARGS__)
#endif

namespace gelu_ext::cuda {

#if !defined(GELU_EXT_EMULATE_CUDA)
// Launches a kernel whose blocks may start where the kernel before it in the stream has called let_next_kernel_start()
// in all of its own, if the device can (programmatic dependent launch): what a launch costs is then over when the first
// kernel is. The second calls wait_for_earlier_kernel() before it looks at memory. Graphs take such launches from
// CUDA 12.3 on. Elsewhere it is a launch like any other.
template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream, const Device& device,
                  const Arguments&... arguments) {
#if CUDART_VERSION >= 12030
  if (device.architecture >= 900) {
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = 1;
    cudaLaunchKernelEx(&config, kernel, arguments...);  // what fails, cudaGetLastError() says
    return;
  }
#endif
  static_cast<void>(device);
  kernel<<<grid, block, 0, stream>>>(arguments...);
}
#endif

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
LaunchShape launch_shape(const Problem& p, Tuning tuning, bool sums, const Device& device);

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

  // What every address that a row begins with is a multiple of: its lowest bit that is set.
  uintptr_t bits(int64_t rows) const {
    return reinterpret_cast<uintptr_t>(data) | (rows == 1 ? 0 : static_cast<uintptr_t>(row_stride));
  }
  bool vectors_can_step(const Passes& passes) const { return passes.full == 0 || step / kVectorBytes <= UINT32_MAX; }
};
using Input = Rows<const char>;
using Output = Rows<char>;

// The bytes of a row, a power of two, that can be accessed together in every matrix: kVectorBytes, or those of a piece.
// Operands that are interleaved have twice as many there, so that they are accessed in pieces; less than one element
// means that not even a pair of theirs can be. `one` and `all` are arrays of Rows: of matrices of one element to a
// column, and of matrices of as many as the problem says.
template <class One, class... All>
int piece_bytes(const Problem& p, const Passes& passes, const One& one, const All&... all) {
  constexpr int kMostOfPiece = kVectorBytes / 2;
  uintptr_t bits = kVectorBytes | static_cast<uintptr_t>(p.cols * size_of(p.dtype));
  bool vectors = p.dtype != DType::float64 && passes.full < INT32_MAX / kVectorBytes && p.step() == 1;
  const auto look_at = [&](const auto& those, int step) {
    for (const auto& matrix : those) {
      bits |= matrix.bits(p.rows) / step;
      vectors = vectors && matrix.vectors_can_step(passes);
    }
  };
  look_at(one, 1);
  (look_at(all, p.step()), ...);
  const int lowest = static_cast<int>(bits & (~bits + 1));
  return lowest == kVectorBytes && !vectors ? kMostOfPiece : lowest;
}

// What is contiguous and has nothing along its columns may be cut into rows anew where its own do not allow vectors:
// into rows of 512 bytes, as many as a warp reads at once, and one row of what is left. f(problem) for each part.
template <class AnyProblem, class F>
int for_each_part(const AnyProblem& p, bool sums, F&& f) {
  const int64_t size = static_cast<int64_t>(size_of(p.dtype)), wide = 32 * kVectorBytes / size;
  const int64_t whole = p.rows * p.cols / wide, left = p.rows * p.cols % wide;
  if (p.cols * size % kVectorBytes == 0 || whole == 0 || sums || p.has_vectors() || !is_contiguous(p)) return f(p);
  const int error = f(recut(p, 0, whole, wide));
  return error != 0 || left == 0 ? error : f(recut(p, whole * wide, 1, left));
}

}  // namespace gelu_ext::cuda
