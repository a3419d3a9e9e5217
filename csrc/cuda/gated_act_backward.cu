// grad_activated = grad_out * (linear + linear_bias) * act'(activated + activated_bias),
// grad_linear = grad_out * act(activated + activated_bias), and both sums over rows in the same pass, from unrounded
// terms. Traffic of 16-bit data: 10 bytes an output element, an H200's time for 78 instructions; the exact form
// takes 34.
#include "column_sums.cuh"

namespace gelu_ext::cuda {
namespace {

// Two biases and two rows of sums are 32 registers of a 16-bit thread, hence 3 blocks: 36 KB in flight. Blackwell's
// compiler would spill there, or delay loads of float32; a B200 wants 43 KB, which 2 blocks of 2 rows exceed.
constexpr Tuning tuning_of(DType dtype) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  constexpr Tuning kSingle = {1, 3}, kHalf = {2, 2};
#else
  constexpr Tuning kSingle = {1, 4}, kHalf = {1, 3};
#endif
  switch (dtype) {
    case DType::float64: return {1, 2};
    case DType::float32: return kSingle;
    default: return kHalf;
  }
}
template <class Columns>
inline constexpr Tuning kTuning = Columns::tuned(tuning_of(Columns::dtype));

// What the kernel takes.
struct Arguments {
  Passes passes;
  int64_t cols;
  Input grad_out, activated, linear;
  ConstVector activated_bias, linear_bias;
  Output grad_activated, grad_linear;
  Vector grad_activated_bias, grad_linear_bias;
  void *activated_partials, *linear_partials;
};

template <class Form, class Columns, Wanted kWanted>
__global__ void __launch_bounds__(kThreads, resident_blocks(kTuning<Columns>)) gated_act_backward_kernel(Arguments p) {
  using Act = Activation<Form, typename Columns::precision>;
  using Values = typename Columns::Values;
  constexpr bool kSums = kWanted != Wanted::matrices;
  const Columns columns(p.cols);
  Values activated_sums = {}, linear_sums = {};

  if (columns.any) {
    const Values activated_bias = load_bias(columns, p.activated_bias), linear_bias = load_bias(columns, p.linear_bias);
    const InputRows<Columns> grad_out(columns, p.grad_out), activated(columns, p.activated), linear(columns, p.linear);
    const OutputRows<Columns> grad_activated(columns, p.grad_activated), grad_linear(columns, p.grad_linear);
    const auto process = [&](int pass, const Values& grad, Values a, Values l) {
#pragma unroll
      for (int k = 0; k < Columns::count; ++k) {
        const auto act = Act::value_and_slope(a[k] + activated_bias[k]);
        a[k] = grad[k] * (l[k] + linear_bias[k]) * act.slope;
        l[k] = grad[k] * act.value;
        if constexpr (kSums) {
          activated_sums[k] += a[k];
          linear_sums[k] += l[k];
        }
      }
      if (kWanted != Wanted::some || grad_activated.wanted()) grad_activated.store(pass, a);
      if (kWanted != Wanted::some || grad_linear.wanted()) grad_linear.store(pass, l);
    };
    walk_rows<Columns, kTuning<Columns>.unroll>(p.passes, process, grad_out, activated, linear);
  }
  if constexpr (kSums) {
    if (p.grad_activated_bias.data != nullptr) {
      store_column_sums<Columns>(activated_sums, p.cols, p.activated_partials, p.grad_activated_bias);
    }
    if (p.grad_linear_bias.data != nullptr) {
      store_column_sums<Columns>(linear_sums, p.cols, p.linear_partials, p.grad_linear_bias);
    }
  }
}

bool sums_wanted(const GatedActBackward& p) {
  return p.grad_activated_bias.data != nullptr || p.grad_linear_bias.data != nullptr;
}

LaunchShape shape_of(const GatedActBackward& p, const Device& device) {
  return launch_shape(p.rows, p.cols, p.dtype, tuning_of(p.dtype), sums_wanted(p), device);
}

}  // namespace

size_t workspace_bytes(const GatedActBackward& p, const Device& device) {
  return sums_wanted(p) ? partials_bytes(2, shape_of(p, device), p.cols, p.dtype) : 0;
}

int gated_act_backward(const GatedActBackward& p, void* workspace, const Device& device, void* stream) {
  const LaunchShape shape = shape_of(p, device);
  const bool sums = sums_wanted(p);
  void* const linear_partials =
      sums ? static_cast<char*>(workspace) + partials_bytes(1, shape, p.cols, p.dtype) : nullptr;
  const Arguments arguments = {Passes(p.rows, shape),
                               p.cols,
                               Input(p.grad_out, p.dtype, shape),
                               Input(p.activated, p.dtype, shape),
                               Input(p.linear, p.dtype, shape),
                               p.activated_bias,
                               p.linear_bias,
                               Output(p.grad_activated, p.dtype, shape),
                               Output(p.grad_linear, p.dtype, shape),
                               p.grad_activated_bias,
                               p.grad_linear_bias,
                               workspace,
                               linear_partials};
  const bool vectors = vectors_fit(p.dtype, p.rows, p.cols, arguments.passes, arguments.grad_out, arguments.activated,
                                   arguments.linear, arguments.grad_activated, arguments.grad_linear);
  if (!sums && p.grad_activated.data == nullptr && p.grad_linear.data == nullptr) return 0;
  const bool matrices = p.grad_activated.data != nullptr && p.grad_linear.data != nullptr;
  with_kernel_types(p.dtype, p.activation, vectors, [&](auto form, auto columns) {
    with_wanted(matrices, sums, [&](auto wanted) {
      constexpr Wanted kWanted = decltype(wanted)::value;
      GELU_EXT_LAUNCH((gated_act_backward_kernel<decltype(form), typename decltype(columns)::type, kWanted>),
                      shape.grid(), shape.block(), stream, arguments);
    });
  });
  if (sums && shape.chunks > 1) {
    sum_chunks(p.dtype, workspace, shape.chunks, p.cols, 2, {p.grad_activated_bias, p.grad_linear_bias}, stream);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace gelu_ext::cuda
