// out = act(activated + activated_bias) * (linear + linear_bias). Traffic of 16-bit data: 6 bytes an output element,
// an H200's time for 47 instructions; the exact form takes 21.
#include "rows.cuh"

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
  Input activated, linear;
  ConstVector activated_bias, linear_bias;
  Output out;
};

template <class Form, class Columns>
__global__ void __launch_bounds__(kThreads, resident_blocks(kTuning<Columns>)) gated_act_forward_kernel(Arguments p) {
  using Act = Activation<Form, typename Columns::precision>;
  using Values = typename Columns::Values;
  const Columns columns(p.cols);
  if (!columns.any) return;

  const Values activated_bias = load_bias(columns, p.activated_bias), linear_bias = load_bias(columns, p.linear_bias);
  const InputRows<Columns> activated(columns, p.activated), linear(columns, p.linear);
  const OutputRows<Columns> out(columns, p.out);
  const auto process = [&](int pass, const Values& a, Values l) {
#pragma unroll
    for (int k = 0; k < Columns::count; ++k) {
      l[k] = Act::value(a[k] + activated_bias[k]) * (l[k] + linear_bias[k]);
    }
    out.store(pass, l);
  };
  walk_rows<Columns, kTuning<Columns>.unroll>(p.passes, process, activated, linear);
}

}  // namespace

int gated_act_forward(const GatedActForward& p, const Device& device, void* stream) {
  const LaunchShape shape = launch_shape(p.rows, p.cols, p.dtype, tuning_of(p.dtype), false, device);
  const Arguments arguments = {Passes(p.rows, shape),           p.cols,           Input(p.activated, p.dtype, shape),
                               Input(p.linear, p.dtype, shape), p.activated_bias, p.linear_bias,
                               Output(p.out, p.dtype, shape)};
  const bool vectors =
      vectors_fit(p.dtype, p.rows, p.cols, arguments.passes, arguments.activated, arguments.linear, arguments.out);
  with_kernel_types(p.dtype, p.activation, vectors, [&](auto form, auto columns) {
    GELU_EXT_LAUNCH((gated_act_forward_kernel<decltype(form), typename decltype(columns)::type>), shape.grid(),
                    shape.block(), stream, arguments);
  });
  return static_cast<int>(cudaGetLastError());
}

}  // namespace gelu_ext::cuda
