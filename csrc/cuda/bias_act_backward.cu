// grad_x = grad_out * act'(x + bias), and grad_bias = its sum over rows in the same pass, from unrounded terms.
// Traffic of 16-bit data: 6 bytes an element, an H200's time for 47 instructions; the exact form takes 25.
#include "column_sums.cuh"

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
  Input grad_out, x;
  ConstVector bias;
  Output grad_x;
  Vector grad_bias;
  void* partials;
};

template <class Form, class Columns, bool kSums>
__global__ void __launch_bounds__(kThreads, resident_blocks(kTuning<Columns>))
    bias_act_backward_kernel(Arguments p) {
  using Act = Activation<Form, typename Columns::precision>;
  using opmath_t = typename Columns::opmath_t;
  const Columns columns(p.cols);
  opmath_t sums[Columns::count] = {};

  if (columns.any) {
    opmath_t bias[Columns::count];
    load_bias(columns, p.bias, bias);
    RowCursor<Columns, const char> grad_out(p.grad_out, columns), x(p.x, columns);
    RowCursor<Columns, char> grad_x(p.grad_x, columns);

    walk_rows<kTuning<Columns>.unroll>(p.walk, [&](auto n) {
      constexpr int kRows = decltype(n)::value;
      typename Columns::Loaded x_loaded[kRows], grad_loaded[kRows];
      grad_out.load(columns, grad_loaded);
      x.load(columns, x_loaded);  // last, as it is used first: the compiler keeps loads in this order
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        opmath_t value[Columns::count], grad[Columns::count];
        columns.to_opmath(x_loaded[u], value);
        columns.to_opmath(grad_loaded[u], grad);
#pragma unroll
        for (int k = 0; k < Columns::count; ++k) {
          grad[k] = grad[k] * Act::slope(value[k] + bias[k]);
          if constexpr (kSums) sums[k] += grad[k];
        }
        if constexpr (kSums) {
          grad_x.store_if_wanted(columns, grad);
        } else {
          grad_x.store(columns, grad);
        }
      }
    });
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
  const Arguments arguments = {Walk(p.rows, shape),
                               p.cols,
                               Input(p.grad_out, p.dtype, shape),
                               Input(p.x, p.dtype, shape),
                               p.bias,
                               Output(p.grad_x, p.dtype, shape),
                               p.grad_bias,
                               workspace};
  const bool sums = p.grad_bias.data != nullptr;
  if (!sums && p.grad_x.data == nullptr) return 0;
  const bool vectors = vectors_fit(p.dtype, p.rows, p.cols, p.grad_out, p.x, p.grad_x);
  with_dtype(p.dtype, [&](auto dtype) {
    with_activation(p.activation, [&](auto form) {
      with_columns<decltype(dtype)::value>(vectors, [&](auto columns) {
        with_bool(sums, [&](auto sum) {
          GELU_EXT_LAUNCH((bias_act_backward_kernel<decltype(form), typename decltype(columns)::type, decltype(sum)::value>),
                          shape.grid(), shape.block(), stream, arguments);
        });
      });
    });
  });
  if (sums && shape.chunks > 1) {
    sum_chunks(p.dtype, workspace, shape.chunks, p.cols, 1, {p.grad_bias, {}}, stream);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace gelu_ext::cuda
