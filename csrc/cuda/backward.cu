// grad[i] = grad_out times the derivative of op by z_i, and the sums over rows that are the vectors' gradients in the
// same pass, from unrounded terms. Traffic of 16-bit data with one operand (two): 6 (10) bytes an element of the
// output, an H200's time for 47 (78) instructions; exact GELU takes 25 (34).
#include "column_sums.cuh"

namespace gelu_ext::cuda {
namespace {

// Two biases and two rows of sums are 32 registers of a 16-bit thread, hence 3 blocks: 36 KB in flight. Blackwell's
// compiler would spill there, or delay loads of float32; a B200 wants 43 KB, which 2 blocks of 2 rows exceed.
constexpr Tuning tuning_of(int operands, DType dtype, int architecture) {
  const bool blackwell = architecture >= 1000, single = dtype == DType::float32;
  if (dtype == DType::float64) return {1, 2};
  if (operands == 1) return tuned_by({1, 4});
  if (blackwell) return tuned_by(single ? Tuning{1, 3} : Tuning{2, 2});
  return tuned_by(single ? Tuning{1, 4} : Tuning{1, 3});
}
template <class Op, class Columns>
inline constexpr Tuning kTuning = Columns::tuned(tuning_of(Op::operands, Columns::dtype, kArchitecture));

// What the kernel takes.
template <class Op, class = std::make_integer_sequence<int, Op::operands>,
          class = std::make_integer_sequence<int, Op::vectors>>
struct Arguments;
template <class Op, int... I, int... J>
struct Arguments<Op, std::integer_sequence<int, I...>, std::integer_sequence<int, J...>> {
  Passes passes;
  int64_t cols;
  Input grad_out[1], x[Op::operands];
  ConstVector vector[Op::vectors];
  Parameters<Op> parameters;
  Output grad[Op::operands];
  Vector grad_vector[Op::vectors];
  void* partials[Op::vectors];

  Arguments(const Backward& p, const LaunchShape& shape, void* workspace)
      : passes(p.rows, shape),
        cols(p.cols),
        grad_out{Input(p.grad_out, p.dtype, shape)},
        x{Input(p.x[I], p.dtype, shape)...},
        vector{p.vector[J]...},
        parameters(p),
        grad{Output(p.grad[I], p.dtype, shape)...},
        grad_vector{p.grad_vector[J]...},
        partials{static_cast<char*>(workspace) + partials_bytes(J, shape, p.cols, p.dtype)...} {}

  template <class Act, class Columns, Wanted kWanted>
  GELU_EXT_DEVICE void run() const {
    using F = Activation<Act, typename Columns::precision>;
    using Values = typename Columns::Values;
    constexpr bool kSums = kWanted != Wanted::matrices;
    const Columns columns(cols);
    Values sums[Op::vectors] = {};

    if (columns.any) {
      const Values vectors[] = {load_vector(columns, vector[J])...};
      const OutputRows<Columns> results[] = {OutputRows<Columns>(columns, grad[I])...};
      const auto process = [&](int pass, const Values& grads, const OfEach<Values, I>&... rows) {
        const Values values[] = {rows...};
        Values result[Op::operands];
#pragma unroll
        for (int k = 0; k < Columns::count; ++k) {
          const auto terms = Op::template gradients<F>(element<Op>(k, values, vectors, parameters, grads));
          ((result[I].value[k] = terms.term[I]), ...);
          if constexpr (kSums) ((sums[J].value[k] += terms.term[J]), ...);
        }
        ((kWanted != Wanted::some || results[I].wanted() ? results[I].store(pass, result[I]) : void()), ...);
      };
      walk_rows<Columns, kTuning<Op, Columns>.unroll>(passes, process, InputRows<Columns>(columns, grad_out[0]),
                                                      InputRows<Columns>(columns, x[I])...);
    }
    if constexpr (kSums) {
      const auto store = [&](const Values& sum, void* partial, const Vector& total) {
        if (total.data != nullptr) store_column_sums<Columns>(sum, cols, partial, total);
      };
      (store(sums[J], partials[J], grad_vector[J]), ...);
    }
  }
};

template <class Op, class Act, class Columns, Wanted kWanted>
__global__ void __launch_bounds__(kThreads, resident_blocks(kTuning<Op, Columns>)) backward_kernel(Arguments<Op> p) {
  p.template run<Act, Columns, kWanted>();
}

bool sums_wanted(const Backward& p) {
  return std::any_of(p.grad_vector, p.grad_vector + p.vectors(), [](const Vector& v) { return v.data != nullptr; });
}

LaunchShape shape_of(const Backward& p, const Device& device) {
  const Tuning tuning = tuning_of(p.operands(), p.dtype, device.architecture);
  return launch_shape(p.rows, p.cols, p.dtype, tuning, sums_wanted(p), device);
}

}  // namespace

size_t workspace_bytes(const Backward& p, const Device& device) {
  return sums_wanted(p) ? partials_bytes(p.vectors(), shape_of(p, device), p.cols, p.dtype) : 0;
}

int backward(const Backward& p, void* workspace, const Device& device, void* stream) {
  const auto wanted = [](const Matrix& m) { return m.data != nullptr; };
  const bool sums = sums_wanted(p), all = std::all_of(p.grad, p.grad + p.operands(), wanted);
  if (!sums && std::none_of(p.grad, p.grad + p.operands(), wanted)) return 0;
  const LaunchShape shape = shape_of(p, device);
  with_types(p, [&](auto op, auto act, auto dtype) {
    using Op = decltype(op);
    const Arguments<Op> arguments(p, shape, workspace);
    const bool vectors = vectors_fit(p, arguments.passes, arguments.grad_out, arguments.x, arguments.grad);
    with_columns<decltype(dtype)::value>(vectors, [&](auto columns) {
      with_wanted(all, sums, [&](auto which) {
        constexpr Wanted kWanted = decltype(which)::value;
        GELU_EXT_LAUNCH((backward_kernel<Op, decltype(act), typename decltype(columns)::type, kWanted>), shape.grid(),
                        shape.block(), stream, arguments);
      });
    });
  });
  if (sums && shape.chunks > 1) sum_chunks(p, workspace, shape.chunks, stream);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace gelu_ext::cuda
