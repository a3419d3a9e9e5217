// Bias gradients: the sums of columns over rows, without atomics and in an order that only the launch shape decides.
// Each thread has summed its own rows. Here the block's threads of one column are summed, lanes of a warp first, then
// warps; that is the gradient if the block had all rows, else a partial sum that sum_chunks() adds to the others.
#pragma once

#include "rows.cuh"

namespace gelu_ext::cuda {

template <class opmath_t>
GELU_EXT_DEVICE void store_sum(const Vector& total, int64_t column, opmath_t sum) {
  const int64_t at = column * total.step;
  switch (total.dtype) {
    case DType::float64: static_cast<double*>(total.data)[at] = sum; return;
    case DType::float32: static_cast<float*>(total.data)[at] = static_cast<float>(sum); return;
    case DType::float16: static_cast<__half*>(total.data)[at] = __float2half_rn(static_cast<float>(sum)); return;
    case DType::bfloat16:
      static_cast<__nv_bfloat16*>(total.data)[at] = __float2bfloat16_rn(static_cast<float>(sum));
      return;
  }
}

// Sums over the lanes of a warp that hold the same columns, if the block is narrower than a warp.
template <int count, class opmath_t>
GELU_EXT_DEVICE void sum_over_warp(opmath_t (&sums)[count]) {
  for (unsigned distance = 16; distance >= blockDim.x; distance /= 2) {
#pragma unroll
    for (int k = 0; k < count; ++k) sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], static_cast<int>(distance));
  }
}

// Called by all threads of the block. partials: [chunks, cols], used if there are several chunks.
template <class Columns>
GELU_EXT_DEVICE void store_column_sums(const Columns& columns, typename Columns::Values sums, int64_t cols,
                                       void* partials, const Vector& total) {
  using opmath_t = typename Columns::opmath_t;
  constexpr int kCount = Columns::count;
  constexpr int kStride = kThreads + 32 / kCount;  // the padding keeps both accesses below free of bank conflicts
  __shared__ opmath_t staged[kCount * kStride];    // [count, rows, lanes]

  sum_over_warp(sums.value);
  const int lanes = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const int group = lanes < 32 ? 32 : lanes;  // threads that end up with one row
  const int rows = kThreads / group;
  __syncthreads();  // an earlier call's sums have been read
  if (thread % group < lanes) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) staged[k * kStride + thread / group * lanes + thread % group] = sums[k];
  }
  __syncthreads();

  for (int in_tile = thread; in_tile < lanes * kCount; in_tile += kThreads) {
    const int64_t column = static_cast<int64_t>(blockIdx.x) * (lanes * kCount) + in_tile;
    if (column >= cols) break;
    const opmath_t* at = staged + columns.element_of(in_tile) * kStride + columns.lane_of(in_tile);
    opmath_t sum = at[0];
    for (int row = 1; row < rows; ++row) sum += at[row * lanes];
    if (gridDim.y == 1) {
      store_sum(total, column, sum);
    } else {
      static_cast<opmath_t*>(partials)[blockIdx.y * cols + column] = sum;
    }
  }
}

// Bytes of partial sums for the gradients of `vectors` vectors, laid out [vectors, chunks, cols] in opmath_t.
inline size_t partials_bytes(int vectors, const LaunchShape& shape, int64_t cols, DType dtype) {
  const size_t size = dtype == DType::float64 ? sizeof(double) : sizeof(float);
  return shape.chunks == 1 ? 0 : size * vectors * shape.chunks * cols;
}

// Launches the sums over chunks into the vectors' gradients that are wanted.
void sum_chunks(const Backward& p, const void* partials, int chunks, const Device& device, void* stream);

}  // namespace gelu_ext::cuda
