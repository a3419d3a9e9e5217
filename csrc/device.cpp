#include "device.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#if defined(GELU_EXT_WITH_CUDA)
#include <ATen/ops/empty.h>

#include <mutex>
#endif

namespace gelu_ext {

void check_device(const char* op, const Tensor& x) {
#if defined(GELU_EXT_WITH_CUDA)
  TORCH_CHECK(x.is_cpu() || x.is_cuda(), op, ": expected a tensor on a cpu or cuda device, got ", x.device());
#else
  TORCH_CHECK(x.is_cpu(), op,
              ": expected a cpu tensor (this build has no CUDA kernels, `python -m gelu_ext` says why), got ",
              x.device());
#endif
}

#if defined(GELU_EXT_WITH_CUDA)
namespace {

// The kernels know no torch: they get the raw stream, and torch's allocator gives them their workspace.
#if defined(GELU_EXT_EMULATE_CUDA)

// A build for tests: the kernels run on the CPU, on its tensors, one launch at a time.
bool is_for_cuda(const Tensor&) { return true; }

template <class Launch>
int launch_on_device_of(const Tensor&, Launch&& f) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  return f(cuda::device(0), nullptr);
}

#else

bool is_for_cuda(const Tensor& x) { return x.is_cuda(); }

// Only c10's generic interface is used, so that this links against any torch.
template <class Launch>
int launch_on_device_of(const Tensor& x, Launch&& f) {
  const c10::DeviceGuard guard(x.device());
  const c10::impl::VirtualGuardImpl device(c10::DeviceType::CUDA);
  return f(cuda::device(x.get_device()), device.getStreamNativeHandle(device.getStream(x.device())));
}

#endif

template <class Launch>
void launch(const char* op, const Problem& p, const Tensor& x, Launch&& f) {
  TORCH_CHECK(!p.dropout.drops(), op, ": expected dropout_p to be 0 for the CUDA kernels, got ", p.dropout.p);
  const int error = launch_on_device_of(x, f);
  TORCH_CHECK(error == 0, op, ": expected a launch on ", x.device(), " to succeed (this build has code for ",
              cuda::architectures(), "), got CUDA error ", error, ", ", cuda::error_string(error));
}

// Undefined where there is nothing to keep.
Tensor workspace(size_t bytes, const Tensor& x) {
  return bytes == 0 ? Tensor() : at::empty({static_cast<int64_t>(bytes)}, x.options().dtype(at::kByte));
}

}  // namespace
#endif

void run([[maybe_unused]] const char* op, const Forward& p, [[maybe_unused]] const Tensor& x) {
#if defined(GELU_EXT_WITH_CUDA)
  if (is_for_cuda(x)) {
    return launch(op, p, x, [&](auto device, auto stream) { return cuda::forward(p, device, stream); });
  }
#endif
  cpu::forward(p);
}

void run([[maybe_unused]] const char* op, const Backward& p, [[maybe_unused]] const Tensor& x) {
#if defined(GELU_EXT_WITH_CUDA)
  if (is_for_cuda(x)) {
    return launch(op, p, x, [&](auto device, auto stream) {
      const Tensor space = workspace(cuda::workspace_bytes(p, device), x);
      return cuda::backward(p, space.defined() ? space.mutable_data_ptr() : nullptr, device, stream);
    });
  }
#endif
  cpu::backward(p);
}

}  // namespace gelu_ext
