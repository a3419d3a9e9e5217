// What a CUDA source sees when g++ compiles it to run on the CPU: the qualifiers, built-in variables, barriers,
// shuffles and runtime calls that the kernels of csrc/cuda/ use. A test tool; csrc/cuda/launch.cuh includes it instead
// of the CUDA runtime if GELU_EXT_EMULATE_CUDA is defined.
//
// Every CUDA thread is a fiber with a stack of its own; all fibers run on one system thread, blocks one after another,
// and a fiber is left only where the program waits for other threads (cuda_emulator.cpp). The types come from NVIDIA's
// headers or from standin/, whichever the include path names first.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#undef __shared__
#undef __grid_constant__
#undef __launch_bounds__
// Thread-local not because of threads: the linker then puts the shared variables of all kernels in one segment, which
// can be found and filled with NaN before each block.
#define __shared__ static thread_local
#define __grid_constant__
#define __launch_bounds__(...)

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace cuda_emulator {

// In which order the blocks of a grid and the threads of a block take turns: "up", "down", or a number that seeds a
// random order, different at every turn.
void set_order(const std::string& order);

// What a call waits for, and where it stands in the source.
struct Wait {
  const char* what;
  unsigned lanes;  // of its own warp, as a mask; 0: all threads of the block
  const char* file;
  int line;
};

// Runs `thread` once for every thread of the grid, as late as CUDA may: when the next kernel is launched, or, if that
// is launched early, when it waits for this one or has ended; at the latest in cudaGetLastError(). A launch that CUDA
// would refuse is an error of that.
void launch(dim3 grid, dim3 block, bool early, std::function<void()> thread);

template <class Kernel, class... Arguments>
void launch_kernel(Kernel kernel, dim3 grid, dim3 block, bool early, const Arguments&... arguments) {
  launch(grid, block, early, [=] { kernel(arguments...); });
}

// Called by a thread of a kernel: runs the one before it, if that has not run.
void wait_for_earlier_kernel();

// Waits until all the threads named wait at the same place. Only `orders_memory` makes their writes visible to each
// other in the eyes of ThreadSanitizer: barriers do, shuffles do not.
void wait_for(const Wait& wait, bool orders_memory);

// Gives `value` to the other lanes and returns that of lane `source`.
uint64_t exchange(const Wait& wait, uint64_t value, unsigned source);

unsigned lane();

template <class T>
T shuffle(const Wait& wait, T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(wait, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_emulator

#define GELU_EXT_LAUNCH(kernel, grid, block, stream, ...) \
  (static_cast<void>(stream), ::cuda_emulator::launch_kernel(kernel, grid, block, false, __VA_ARGS__))
#define GELU_EXT_LAUNCH_EARLY(kernel, grid, block, stream, device, ...) \
  (static_cast<void>(stream), static_cast<void>(device),                \
   ::cuda_emulator::launch_kernel(kernel, grid, block, true, __VA_ARGS__))

// As default arguments these two name the line of the call.
#define GELU_EXT_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(GELU_EXT_CALLER) { cuda_emulator::wait_for({"__syncthreads", 0, file, line}, true); }
inline void __syncwarp(unsigned lanes = 0xffffffffu, GELU_EXT_CALLER) {
  cuda_emulator::wait_for({"__syncwarp", lanes, file, line}, true);
}
template <class T>
T __shfl_sync(unsigned lanes, T value, int source, GELU_EXT_CALLER) {
  return cuda_emulator::shuffle({"__shfl_sync", lanes, file, line}, value, static_cast<unsigned>(source) % 32);
}
template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int distance, GELU_EXT_CALLER) {
  return cuda_emulator::shuffle({"__shfl_xor_sync", lanes, file, line}, value, cuda_emulator::lane() ^ distance);
}
template <class T>
T __shfl_down_sync(unsigned lanes, T value, unsigned distance, GELU_EXT_CALLER) {
  return cuda_emulator::shuffle({"__shfl_down_sync", lanes, file, line}, value, cuda_emulator::lane() + distance);
}

#undef GELU_EXT_CALLER
