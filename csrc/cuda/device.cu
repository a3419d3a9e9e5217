// What the launchers want to know of a device. The attribute is cached by the driver: asking costs tens of nanoseconds.
#include "launch.cuh"

namespace gelu_ext::cuda {

Device device(int index) {
  Device result = {1};
#if !defined(GELU_EXT_EMULATE_CUDA)
  cudaDeviceGetAttribute(&result.multiprocessors, cudaDevAttrMultiProcessorCount, index);
#else
  (void)index;
#endif
  return result;
}

}  // namespace gelu_ext::cuda
