// The second step of the bias gradients: adds up the partial sums of all chunks, in a fixed order and in double, so
// that the number of chunks costs no accuracy. They are about a hundredth of the data of the first step.
#include "column_sums.cuh"

namespace gelu_ext::cuda {
namespace {

constexpr int kSumColumns = 8;  // of a block: 32 bytes of a row of partial sums, the least that memory moves
constexpr int kWarps = kThreads / 32;

// A parameter of its kernel that stays where it is (__grid_constant__): a computed index into a copy of it would need
// local memory.
struct Totals {
  Vector of[Operations::most_vectors];
};

// A thread adds every 32nd chunk, then the 4 threads of a warp that share a column, then the warps.
template <class opmath_t>
__global__ void __launch_bounds__(kThreads)
    sum_chunks_kernel(const opmath_t* partials /* [vectors, chunks, cols] */, int chunks, int64_t cols,
                      const __grid_constant__ Totals totals) {
  __shared__ double staged[kWarps][kSumColumns];
  wait_for_earlier_kernel();
  const Vector& total = totals.of[blockIdx.y];
  if (total.data == nullptr) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + thread % kSumColumns;
  double sum = 0;
  if (column < cols) {
    const opmath_t* at = partials + static_cast<int64_t>(blockIdx.y) * chunks * cols + column;
#pragma unroll 4
    for (int chunk = thread / kSumColumns; chunk < chunks; chunk += kThreads / kSumColumns) sum += at[chunk * cols];
  }
  sum += __shfl_xor_sync(0xffffffffu, sum, 16);
  sum += __shfl_xor_sync(0xffffffffu, sum, 8);
  if (thread % 32 < kSumColumns) staged[thread / 32][thread % 32] = sum;
  __syncthreads();
  if (thread < kSumColumns && column < cols) {
    for (int warp = 1; warp < kWarps; ++warp) sum += staged[warp][thread];
    store_sum(total, column, sum);
  }
}

}  // namespace

void sum_chunks(const Backward& p, const void* partials, int chunks, const Device& device, void* stream) {
  const dim3 grid(static_cast<unsigned>((p.cols + kSumColumns - 1) / kSumColumns), static_cast<unsigned>(p.vectors()));
  Totals totals;
  std::copy(std::begin(p.grad_vector), std::end(p.grad_vector), totals.of);
  if (p.dtype == DType::float64) {
    GELU_EXT_LAUNCH_EARLY((sum_chunks_kernel<double>), grid, dim3(kThreads), stream, device,
                          static_cast<const double*>(partials), chunks, p.cols, totals);
  } else {
    GELU_EXT_LAUNCH_EARLY((sum_chunks_kernel<float>), grid, dim3(kThreads), stream, device,
                          static_cast<const float*>(partials), chunks, p.cols, totals);
  }
}

}  // namespace gelu_ext::cuda
