// grad[i] = grad_out times the derivative of op by z_i, and the sums over rows that are the vectors' gradients in the
// same pass, from unrounded terms. Traffic of 16-bit data with one operand (two): 6 (10) bytes an element of the
// output, an H200's time for 47 (78) instructions; exact GELU takes 25 (34).
#include "column_sums.cuh"

namespace gelu_ext::cuda {
namespace {

template <class Op, class Columns, Wanted kWanted>
inline constexpr Tuning kTuning = Columns::tuned(backward_tuning(kSizes<Op>, kWanted, Columns::dtype, kArchitecture));

// What the kernel takes.
template <class Op, class = std::make_integer_sequence<int, Op::operands>,
          class = std::make_integer_sequence<int, Op::matrices>, class = std::make_integer_sequence<int, Op::vectors>>
struct Arguments;
template <class Op, int... I, int... M, int... J>
struct Arguments<Op, std::integer_sequence<int, I...>, std::integer_sequence<int, M...>,
                 std::integer_sequence<int, J...>> {
  Passes passes;
  int64_t cols;
  Input grad_out[1], x[Op::matrices];
  ConstVector vector[Op::vectors];
  Parameters<Op> parameters;
  Output grad[Op::matrices];
  Vector grad_vector[Op::vectors];
  void* partials[Op::vectors];
  int piece;  // elements of a row that are accessed together

  Arguments(const Backward& p, const LaunchShape& shape, void* workspace)
      : passes(p.rows, shape),
        cols(p.cols),
        grad_out{Input(p.grad_out, p.dtype, shape)},
        x{Input(p.x[M], p.dtype, shape)...},
        vector{p.vector[J]...},
        parameters(p),
        grad{Output(p.grad[M], p.dtype, shape)...},
        grad_vector{p.grad_vector[J]...},
        partials{static_cast<char*>(workspace) + partials_bytes(J, shape, p.cols, p.dtype)...},
        piece(piece_bytes(p, passes, grad_out, x, grad) / static_cast<int>(size_of(p.dtype))) {}

  template <class Act, class Columns, Wanted kWanted>
  GELU_EXT_DEVICE void run() const {
    using F = Activation<Act, typename Columns::precision>;
    using Values = typename Columns::Values;
    constexpr bool kSums = kWanted != Wanted::matrices;
    const Columns columns(cols, piece);
    Values sums[Op::vectors] = {};

    if (columns.any) {
      Values vectors[Op::vectors];
      const auto prepare = [&] { ((vectors[J] = load_vector(columns, vector[J])), ...); };
      const OutputRows<Columns, AccessOf<Op, 0>> results[] = {{columns, grad[kMatrixOf<Op, I>]}...};
      const auto process = [&](int pass, const Values& grads, const OfEach<Values, I>&... rows) {
        Values values[] = {rows...};
        take_pairs_apart<Op>(values);
        Values result[Op::operands];
#pragma unroll
        for (int k = 0; k < Columns::count; ++k) {
          const auto terms =
              Op::template gradients<F>(element<Op, typename F::T>(k, values, vectors, parameters, &grads));
          ((result[I][k] = terms.term[I]), ...);
          if constexpr (kSums) ((sums[J][k] += terms.term[J]), ...);
        }
        put_pairs_together<Op>(result);
        ((kWanted != Wanted::some || results[I].wanted() ? results[I].template store<AccessOf<Op, I>>(pass, result[I])
                                                         : void()),
         ...);
      };
      walk_rows<Columns, kTuning<Op, Columns, kWanted>.unroll>(
          passes, prepare, process, InputRows<Columns>(columns, grad_out[0]),
          InputRows<Columns, AccessOf<Op, I>>(columns, x[kMatrixOf<Op, I>])...);
    }
    if constexpr (kSums) {
      let_next_kernel_start();
      const auto store = [&](const Values& sum, void* partial, const Vector& total) {
        if (total.data != nullptr) store_column_sums(columns, sum, cols, partial, total);
      };
      (store(sums[J], partials[J], grad_vector[J]), ...);
    }
  }
};

template <class Op, class Act, class Columns, Wanted kWanted>
__global__ void __launch_bounds__(kThreads, resident_blocks(kTuning<Op, Columns, kWanted>))
    backward_kernel(Arguments<Op> p) {
  p.template run<Act, Columns, kWanted>();
}

bool sums_wanted(const Backward& p) {
  return std::any_of(p.grad_vector, p.grad_vector + p.vectors(), [](const Vector& v) { return v.data != nullptr; });
}

Wanted wanted_of(const Backward& p) {
  const auto wanted = [](const Matrix& m) { return m.data != nullptr; };
  if (!std::all_of(p.grad, p.grad + p.matrices(), wanted)) return Wanted::some;
  return sums_wanted(p) ? Wanted::matrices_and_sums : Wanted::matrices;
}

// Calls f with a std::integral_constant<Wanted, ...>. Pieces have the kernel alone that can do all.
template <class Columns, class F>
void with_wanted(Wanted wanted, F&& f) {
  if constexpr (std::is_same_v<Columns, VectorColumns<Columns::dtype>>) {
    if (wanted == Wanted::matrices) return f(std::integral_constant<Wanted, Wanted::matrices>{});
    if (wanted == Wanted::matrices_and_sums) return f(std::integral_constant<Wanted, Wanted::matrices_and_sums>{});
  }
  f(std::integral_constant<Wanted, Wanted::some>{});
}

LaunchShape shape_of(const Backward& p, const Device& device) {
  const Tuning tuning = backward_tuning(sizes_of(p), wanted_of(p), p.dtype, device.architecture);
  return launch_shape(p, tuning, sums_wanted(p), device);
}

int launch(const Backward& p, void* workspace, const Device& device, void* stream) {
  const LaunchShape shape = shape_of(p, device);
  with_types(p, [&](auto op, auto act, auto dtype) {
    using Op = decltype(op);
    const Arguments<Op> arguments(p, shape, workspace);
    with_columns<Op, decltype(dtype)::value>(arguments.piece, [&](auto columns) {
      using Columns = typename decltype(columns)::type;
      with_wanted<Columns>(wanted_of(p), [&](auto which) {
        constexpr Wanted kWanted = decltype(which)::value;
        GELU_EXT_LAUNCH((backward_kernel<Op, decltype(act), Columns, kWanted>), shape.grid(), shape.block(), stream,
                        arguments);
      });
    });
  });
  if (sums_wanted(p) && shape.chunks > 1) sum_chunks(p, workspace, shape.chunks, device, stream);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

size_t workspace_bytes(const Backward& p, const Device& device) {
  return sums_wanted(p) ? partials_bytes(p.vectors(), shape_of(p, device), p.cols, p.dtype) : 0;
}

int backward(const Backward& problem, void* workspace, const Device& device, void* stream) {
  bool any = sums_wanted(problem);
  for (const Matrix& grad : problem.grad) any = any || grad.data != nullptr;
  if (!any) return 0;
  return for_each_part(problem, sums_wanted(problem),
                       [&](const Backward& p) { return launch(p, workspace, device, stream); });
}

}  // namespace gelu_ext::cuda
