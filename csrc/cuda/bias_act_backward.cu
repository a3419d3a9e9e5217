// grad_x = grad_out * act'(x + bias), and grad_bias = its sum over rows in the same pass, from unrounded terms.
// Traffic of 16-bit data: 6 bytes an element, an H200's time for 47 instructions; the exact form takes 25.
#include "column_sums.cuh"

namespace gelu_ext::cuda {
namespace {

constexpr Tuning tuning_of(DType dtype) {
  switch (dtype) {
    case DType::float64: return {1, 2};
    case DType::float32: return {1, 4};
    default: return {1, 4};
  }
}
template <class Columns>
inline constexpr Tuning kTuning = Columns::tuned(tuning_of(Columns::dtype));

// What the kernel takes.
struct Arguments {
  Passes passes;
  int64_t cols;
  Input grad_out, x;
  ConstVector bias;
  Output grad_x;
  Vector grad_bias;
  void* partials;
};

template <class Form, class Columns, Wanted kWanted>
__global__ void __launch_bounds__(kThreads, resident_blocks(kTuning<Columns>)) bias_act_backward_kernel(Arguments p) {
  using Act = Activation<Form, typename Columns::precision>;
  using Values = typename Columns::Values;
  constexpr bool kSums = kWanted != Wanted::matrices;
  const Columns columns(p.cols);
  Values sums = {};

  if (columns.any) {
    const Values bias = load_bias(columns, p.bias);
    const InputRows<Columns> grad_out(columns, p.grad_out), x(columns, p.x);
    const OutputRows<Columns> grad_x(columns, p.grad_x);
    const auto process = [&](int pass, Values grad, const Values& value) {
#pragma unroll
      for (int k = 0; k < Columns::count; ++k) {
        grad[k] = grad[k] * Act::slope(value[k] + bias[k]);
        if constexpr (kSums) sums[k] += grad[k];
      }
      if (kWanted != Wanted::some || grad_x.wanted()) grad_x.store(pass, grad);
    };
    walk_rows<Columns, kTuning<Columns>.unroll>(p.passes, process, grad_out, x);
  }
  if constexpr (kSums) store_column_sums<Columns>(sums, p.cols, p.partials, p.grad_bias);
}

LaunchShape shape_of(const BiasActBackward& p, const Device& device) {
  return launch_shape(p.rows, p.cols, p.dtype, tuning_of(p.dtype), p.grad_bias.data != nullptr, device);
}

}  // namespace

size_t workspace_bytes(const BiasActBackward& p, const Device& device) {
  return p.grad_bias.data == nullptr ? 0 : partials_bytes(1, shape_of(p, device), p.cols, p.dtype);
}

int bias_act_backward(const BiasActBackward& p, void* workspace, const Device& device, void* stream) {
  const LaunchShape shape = shape_of(p, device);
  const Arguments arguments = {Passes(p.rows, shape),
                               p.cols,
                               Input(p.grad_out, p.dtype, shape),
                               Input(p.x, p.dtype, shape),
                               p.bias,
                               Output(p.grad_x, p.dtype, shape),
                               p.grad_bias,
                               workspace};
  const bool vectors =
      vectors_fit(p.dtype, p.rows, p.cols, arguments.passes, arguments.grad_out, arguments.x, arguments.grad_x);
  const bool matrices = p.grad_x.data != nullptr, sums = p.grad_bias.data != nullptr;
  if (!matrices && !sums) return 0;
  with_kernel_types(p.dtype, p.activation, vectors, [&](auto form, auto columns) {
    with_wanted(matrices, sums, [&](auto wanted) {
      constexpr Wanted kWanted = decltype(wanted)::value;
      GELU_EXT_LAUNCH((bias_act_backward_kernel<decltype(form), typename decltype(columns)::type, kWanted>),
                      shape.grid(), shape.block(), stream, arguments);
    });
  });
  if (sums && shape.chunks > 1) {
    sum_chunks(p.dtype, workspace, shape.chunks, p.cols, 1, {p.grad_bias, {}}, stream);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace gelu_ext::cuda
