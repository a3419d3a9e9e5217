// Shows that the emulator and the sanitizers catch what they are for: a kernel in the manner of csrc/cuda/ (loads, a
// block-wide sum through shared memory, a sum over a warp), whole and with one fault each.
//
//     emulated_faults FAULT
//
// prints the sum if nothing stopped it. run_emulated.py knows in which build which words must appear.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cuda_emulator.h"

namespace {

enum class Fault {
  none,
  read_outside,
  write_outside,
  misaligned_vector,
  shared_overrun,
  unwritten_shared,
  missing_barrier,
  missing_warp_barrier,
  barrier_in_branch,
  return_before_barrier,
  two_barriers,
  shuffle_in_branch,
  shuffle_outside_mask,
  block_too_large,
  grid_too_tall,
  empty_grid,
};
constexpr const char* kNames[] = {
    "none",
    "read_outside",
    "write_outside",
    "misaligned_vector",
    "shared_overrun",
    "unwritten_shared",
    "missing_barrier",
    "missing_warp_barrier",
    "barrier_in_branch",
    "return_before_barrier",
    "two_barriers",
    "shuffle_in_branch",
    "shuffle_outside_mask",
    "block_too_large",
    "grid_too_tall",
    "empty_grid",
};

constexpr int kThreads = 128, kLanes = 32, kWarps = kThreads / kLanes;

struct alignas(16) Vector {
  float element[4];
};

// totals[block] = the sum of the block's 4 * kThreads numbers.
template <Fault fault>
__global__ void __launch_bounds__(kThreads) block_sums(const float* numbers, float* totals) {
  __shared__ float staged[kThreads];
  __shared__ float warp_totals[kWarps];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, warp = thread / kLanes;
  if constexpr (fault == Fault::return_before_barrier) {
    if (thread == kThreads - 1) return;
  }

  const bool outside = fault == Fault::read_outside && blockIdx.x + 1 == gridDim.x;
  const float* at = numbers + (blockIdx.x * kThreads + thread + outside) * 4;
  if constexpr (fault == Fault::misaligned_vector) at += thread == 5 ? -1 : 0;
  const Vector& vector = *reinterpret_cast<const Vector*>(at);
  const float own = (vector.element[0] + vector.element[1]) + (vector.element[2] + vector.element[3]);
  if (fault != Fault::unwritten_shared || thread != 77) {
    staged[thread + (fault == Fault::shared_overrun ? 1 : 0)] = own;
  }

  if constexpr (fault == Fault::barrier_in_branch) {
    if (warp != 2) __syncthreads();
  } else if constexpr (fault == Fault::two_barriers) {
    if (warp == 2) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if constexpr (fault != Fault::missing_barrier) {
    __syncthreads();
  }

  float sum = staged[kThreads - 1 - thread];  // another thread's
  if constexpr (fault == Fault::shuffle_in_branch) {
    if (lane != 9) sum += __shfl_xor_sync(0xffffffffu, sum, 16);
  } else if constexpr (fault == Fault::shuffle_outside_mask) {
    if (lane < 8) sum += __shfl_xor_sync(0xffu, sum, 16);
  } else {
    sum += __shfl_xor_sync(0xffffffffu, sum, 16);
  }
  for (int distance = 8; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffffu, sum, distance);
  if (lane == 0) warp_totals[warp] = sum;
  if constexpr (fault != Fault::missing_warp_barrier) __syncwarp();
  if (lane == 1) warp_totals[warp] *= 2;
  __syncthreads();
  if (thread == 0) {
    float total = 0;
    for (int i = 0; i < kWarps; ++i) total += warp_totals[i];
    totals[blockIdx.x + (fault == Fault::write_outside ? 1 : 0)] = total;
  }
}

template <Fault fault>
int run() {
  constexpr int kBlocks = 3, kNumbers = kBlocks * kThreads * 4;
  const std::unique_ptr<float, decltype(&std::free)> memory(
      static_cast<float*>(std::aligned_alloc(64, kNumbers * sizeof(float))), &std::free);
  const std::unique_ptr<float[]> totals(new float[kBlocks]());
  for (int i = 0; i < kNumbers; ++i) memory.get()[i] = static_cast<float>(i % 7);
  const dim3 grid = fault == Fault::empty_grid      ? dim3(0)
                    : fault == Fault::grid_too_tall ? dim3(1, 65536)
                                                    : dim3(kBlocks);
  const dim3 block(fault == Fault::block_too_large ? 1025 : kThreads);
  GELU_EXT_LAUNCH((block_sums<fault>), grid, block, nullptr, memory.get(), totals.get());
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    std::printf("%s\n", cudaGetErrorString(error));
    return 1;
  }
  float sum = 0, want = 0;
  for (int i = 0; i < kBlocks; ++i) sum += totals[i];
  for (int i = 0; i < kNumbers; ++i) want += 2 * static_cast<float>(i % 7);
  std::printf("sum %g, should be %g\n", sum, want);
  return sum == want ? 0 : 1;
}

template <int i = 0>
int run_named(const char* name) {
  if (std::strcmp(kNames[i], name) == 0) return run<static_cast<Fault>(i)>();
  if constexpr (i + 1 < static_cast<int>(std::size(kNames))) return run_named<i + 1>(name);
  std::fprintf(stderr, "no fault is called %s\n", name);
  return 2;
}

}  // namespace

int main(int count, char** arguments) {
  static_assert(std::size(kNames) == static_cast<size_t>(Fault::empty_grid) + 1);
  cuda_emulator::set_order(count > 2 ? arguments[2] : "up");
  return run_named(count > 1 ? arguments[1] : "");
}
