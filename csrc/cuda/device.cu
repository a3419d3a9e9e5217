// What the launchers want to know of a device. Both answers are the driver's, and are kept: asking for a kernel's
// attributes costs microseconds.
#include <atomic>

#include "launch.cuh"

namespace gelu_ext::cuda {
#if defined(GELU_EXT_EMULATE_CUDA)

Device device(int) { return {1, kArchitecture}; }

#else
namespace {

__global__ void probe_kernel() {}

// All kernels are compiled for the same list of architectures, so what runs of one is what runs of all.
int architecture() {
  cudaFuncAttributes attributes = {};
  if (cudaFuncGetAttributes(&attributes, probe_kernel) != cudaSuccess) cudaGetLastError();  // the launch will say why
  return 10 * attributes.ptxVersion;
}

}  // namespace

Device device(int index) {
  constexpr int kMost = 64;
  static std::atomic<int> architectures[kMost] = {};
  Device result = {1, 0};
  cudaDeviceGetAttribute(&result.multiprocessors, cudaDevAttrMultiProcessorCount, index);
  if (index >= kMost) {
    result.architecture = architecture();
  } else {
    result.architecture = architectures[index].load(std::memory_order_relaxed);
    if (result.architecture == 0) architectures[index].store(result.architecture = architecture());
  }
  return result;
}

#endif
}  // namespace gelu_ext::cuda
