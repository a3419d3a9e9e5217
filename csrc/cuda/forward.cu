// out = op(z_0, ...), z_i = x_i + bias_i. Traffic of 16-bit data with one operand (two): 4 (6) bytes an element of the
// output, which an H200 moves in the time of 31 (47) instructions; exact GELU takes 18 (21).
#include "rows.cuh"

namespace gelu_ext::cuda {
namespace {

template <class Op, class Columns>
inline constexpr Tuning kTuning = Columns::tuned(forward_tuning(kSizes<Op>, Columns::dtype, kArchitecture));

// What the kernel takes.
template <class Op, class = std::make_integer_sequence<int, Op::operands>,
          class = std::make_integer_sequence<int, Op::matrices>, class = std::make_integer_sequence<int, Op::vectors>>
struct Arguments;
template <class Op, int... I, int... M, int... J>
struct Arguments<Op, std::integer_sequence<int, I...>, std::integer_sequence<int, M...>,
                 std::integer_sequence<int, J...>> {
  Passes passes;
  int64_t cols;
  Input x[Op::matrices];
  ConstVector vector[Op::vectors];
  Parameters<Op> parameters;
  Output out[1];
  int piece;  // elements of a row that are accessed together

  Arguments(const Forward& p, const LaunchShape& shape)
      : passes(p.rows, shape),
        cols(p.cols),
        x{Input(p.x[M], p.dtype, shape)...},
        vector{p.vector[J]...},
        parameters(p),
        out{Output(p.out, p.dtype, shape)},
        piece(piece_bytes(p, passes, out, x) / static_cast<int>(size_of(p.dtype))) {}

  template <class Act, class Columns>
  GELU_EXT_DEVICE void run() const {
    using F = Activation<Act, ForwardPrecision<Op, Act, Columns>>;
    using T = typename F::T;
    using Values = typename Columns::Values;
    const Columns columns(cols, piece);
    if (!columns.any) return;

    Values vectors[Op::vectors];
    const auto prepare = [&] { ((vectors[J] = load_vector(columns, vector[J])), ...); };
    const OutputRows<Columns> results(columns, out[0]);
    const auto process = [&](int pass, const OfEach<Values, I>&... rows) {
      Values values[] = {rows...};
      take_pairs_apart<Op>(values);
      Values result;
#pragma unroll
      for (int k = 0; k < Columns::count; k += kTogether<T>) {
        set<T>(result, k, Op::template value<F>(element<Op, T>(k, values, vectors, parameters)));
      }
      results.store(pass, result);
    };
    walk_rows<Columns, kTuning<Op, Columns>.unroll>(
        passes, prepare, process, InputRows<Columns, AccessOf<Op, I>>(columns, x[kMatrixOf<Op, I>])...);
  }
};

template <class Op, class Act, class Columns>
__global__ void __launch_bounds__(kThreads, resident_blocks(kTuning<Op, Columns>)) forward_kernel(Arguments<Op> p) {
  p.template run<Act, Columns>();
}

int launch(const Forward& p, const Device& device, void* stream) {
  const LaunchShape shape = launch_shape(p, forward_tuning(sizes_of(p), p.dtype, device.architecture), false, device);
  with_types(p, [&](auto op, auto act, auto dtype) {
    using Op = decltype(op);
    const Arguments<Op> arguments(p, shape);
    with_columns<Op, decltype(dtype)::value>(arguments.piece, [&](auto columns) {
      GELU_EXT_LAUNCH((forward_kernel<Op, decltype(act), typename decltype(columns)::type>), shape.grid(),
                      shape.block(), stream, arguments);
    });
  });
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int forward(const Forward& problem, const Device& device, void* stream) {
  return for_each_part(problem, false, [&](const Forward& p) { return launch(p, device, stream); });
}

}  // namespace gelu_ext::cuda
