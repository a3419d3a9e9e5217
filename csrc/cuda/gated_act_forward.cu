// out = act(activated + activated_bias) * (linear + linear_bias). Traffic of 16-bit data: 6 bytes an output element,
// an H200's time for 47 instructions; the exact form takes 20.
#include "rows.cuh"

namespace gelu_ext::cuda {
namespace {

constexpr Tuning tuning_of(DType dtype) {
  switch (dtype) {
    case DType::float64: return {1, 2};
    case DType::float32: return {1, 5};
    default: return {1, 4};
  }
}
template <class Columns>
inline constexpr Tuning kTuning = Columns::tuned(tuning_of(Columns::dtype));

// What the kernel takes.
struct Arguments {
  Walk walk;
  int64_t cols;
  Input activated, linear;
  ConstVector activated_bias, linear_bias;
  Output out;
};

template <class Form, class Columns>
__global__ void __launch_bounds__(kThreads, resident_blocks(kTuning<Columns>))
    gated_act_forward_kernel(Arguments p) {
  using Act = Activation<Form, typename Columns::precision>;
  using opmath_t = typename Columns::opmath_t;
  const Columns columns(p.cols);
  if (!columns.any) return;

  opmath_t activated_bias[Columns::count], linear_bias[Columns::count];
  load_bias(columns, p.activated_bias, activated_bias);
  load_bias(columns, p.linear_bias, linear_bias);
  RowCursor<Columns, const char> activated(p.activated, columns), linear(p.linear, columns);
  RowCursor<Columns, char> out(p.out, columns);

  walk_rows<kTuning<Columns>.unroll>(p.walk, [&](auto n) {
    constexpr int kRows = decltype(n)::value;
    typename Columns::Loaded activated_loaded[kRows], linear_loaded[kRows];
    linear.load(columns, linear_loaded);
    activated.load(columns, activated_loaded);  // last, as it is used first: the compiler keeps loads in this order
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      opmath_t a[Columns::count], l[Columns::count];
      columns.to_opmath(activated_loaded[u], a);
      columns.to_opmath(linear_loaded[u], l);
#pragma unroll
      for (int k = 0; k < Columns::count; ++k) {
        l[k] = Act::value(a[k] + activated_bias[k]) * (l[k] + linear_bias[k]);
      }
      out.store(columns, l);
    }
  });
}

}  // namespace

int gated_act_forward(const GatedActForward& p, const Device& device, void* stream) {
  const LaunchShape shape = launch_shape(p.rows, p.cols, p.dtype, tuning_of(p.dtype), false, device);
  const Arguments arguments = {Walk(p.rows, shape),
                               p.cols,
                               Input(p.activated, p.dtype, shape),
                               Input(p.linear, p.dtype, shape),
                               p.activated_bias,
                               p.linear_bias,
                               Output(p.out, p.dtype, shape)};
  const bool vectors = vectors_fit(p.dtype, p.rows, p.cols, p.activated, p.linear, p.out);
  with_dtype(p.dtype, [&](auto dtype) {
    with_activation(p.activation, [&](auto form) {
      with_columns<decltype(dtype)::value>(vectors, [&](auto columns) {
        GELU_EXT_LAUNCH((gated_act_forward_kernel<decltype(form), typename decltype(columns)::type>), shape.grid(),
                        shape.block(), stream, arguments);
      });
    });
  });
  return static_cast<int>(cudaGetLastError());
}

}  // namespace gelu_ext::cuda
