// The row loops of one instruction set. The file that includes this one opens its target region and its own namespace
// first, so that nothing compiled here can be shared with another instruction set by the linker. Includes no standard
// header: those do not belong in a target region.

#include "pack.h"
#include "storage.h"

#include "dropout_factors.h"  // knows the two

template <class S>
const S* at(const ConstMatrix& m, int64_t row, int64_t col) {
  return static_cast<const S*>(m.data) + row * m.row_stride + col;
}
template <class S>
S* at(const Matrix& m, int64_t row, int64_t col) {
  return static_cast<S*>(m.data) + row * m.row_stride + col;
}

// Not in the loop, which would keep constants in registers and what f computes in memory instead.
template <class F, class... Args>
__attribute__((noinline)) void call(F& f, Args... args) {
  f(args...);
}

// f(precision, row, col, n) for every pack of the tile, in the order of memory: n elements, wide packs as long as they
// are whole, then packs of one register. With dropout, a row is taken in pieces whose factors are made first.
template <class Act, DType D, class F>
GELU_EXT_FN void for_each_pack(const Tile& tile, DropoutFactors<D>& factors, F&& f) {
  using Precision = typename PrecisionOf<D>::type;
  using Wide = Packed<Precision, kWidth<Act, Precision>>;
  using Narrow = Packed<Precision, 1>;
  constexpr Whole<typename Wide::type> wide;
  constexpr Whole<typename Narrow::type> narrow;
  for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
    for (int64_t col = tile.col_begin; col < tile.col_end;) {
      const int64_t end = factors.make(row, col, tile.col_end);
      for (; col + wide <= end; col += wide) call(f, Wide{}, row, col, wide);
      for (; col + narrow <= end; col += narrow) f(Narrow{}, row, col, narrow);
      if (col < end) f(Narrow{}, row, col, static_cast<int>(end - col));
      col = end;
    }
  }
}

// The pack at (row, col), and what will be wanted in a while fetched into the cache: these loops are so light that the
// processor's own prefetching falls behind where the data comes from memory, above all with two rows to read. Of a
// matrix of `Step` elements to a column, the `Which`-th of each.
template <class T, class S, int Step = 1, int Which = 0, class N>
GELU_EXT_FN T stream(const ConstMatrix& m, const Tile& tile, int64_t row, int64_t col, N n) {
  constexpr int kAhead = 2048, kLine = 64, kBytes = Step * static_cast<int>(sizeof(S));
  const S* src = at<S>(m, row, col * Step);
  // at the end of the row the beginning of the next
  const bool in_row = col + kAhead / kBytes < tile.col_end;
  const int64_t jump = in_row ? 0 : m.row_stride - (tile.col_end - tile.col_begin) * Step;
  for (int i = 0; i < n * kBytes; i += kLine) {
    __builtin_prefetch(reinterpret_cast<const char*>(src + jump) + kAhead + i);
  }
  if constexpr (Step == 1) {
    return load<T>(src, n);
  } else {
    return load_every_second<T, Which>(src, n);
  }
}

// A vector's numbers for a pack: -0 where there is no bias, since x + -0 is x for every x, -0 too.
template <class P, class N>
GELU_EXT_FN typename P::type vector_at(const void* vector, int64_t col, N n) {
  using T = typename P::type;
  return vector == nullptr ? T(-0.0f) : load<T>(static_cast<const typename P::scalar*>(vector) + col, n);
}

template <class P, class N>
GELU_EXT_FN void add_to(void* sum, int64_t col, const typename P::type& terms, N n) {
  if (sum == nullptr) return;
  auto* at = static_cast<typename P::scalar*>(sum) + col;
  store(at, load<typename P::type>(at, n) + terms, n);
}

// What an operation sees of a problem: one pack, at (row, col).
template <class Op, class AnyProblem, class P, DType D, class N>
struct PackOf {
  using T = typename P::type;
  using S = typename StorageOf<D>::type;
  static constexpr int kStep = Op::operands / Op::matrices;

  const AnyProblem& p;
  const void* const* vectors;
  const DropoutFactors<D>& factors;
  const Tile& tile;
  int64_t row, col;
  N n;

  template <int I>
  GELU_EXT_FN T z(Index<I>) const {
    return stream<T, S, kStep, I % kStep>(p.x[I / kStep], tile, row, col, n) + vector(Index<I>());
  }
  template <int J>
  GELU_EXT_FN T vector(Index<J>) const {
    return vector_at<P>(vectors[J], col, n);
  }
  template <int K>
  GELU_EXT_FN typename P::scalar parameter(Index<K>) const {
    return static_cast<typename P::scalar>(p.parameter[K]);
  }
  GELU_EXT_FN T grad_out() const { return factors.applied(stream<T, S>(p.grad_out, tile, row, col, n), col, n); }
};

// f(Index<i>()) for i below N, without a loop
template <class F, int... I>
GELU_EXT_FN void for_each_index(std::integer_sequence<int, I...>, const F& f) {
  (f(Index<I>()), ...);
}
template <int N, class F>
GELU_EXT_FN void for_each_index(const F& f) {
  for_each_index(std::make_integer_sequence<int, N>(), f);
}

template <class Op, class Act, DType D>
void forward_tile(const Forward& p, const void* const vectors[], const Tile& tile) {
  using S = typename StorageOf<D>::type;
  DropoutFactors<D> factors(p);
  const auto pack = [&](auto precision, int64_t row, int64_t col, auto n) __attribute__((always_inline)) {
    using P = decltype(precision);
    const PackOf<Op, Forward, P, D, decltype(n)> in{p, vectors, factors, tile, row, col, n};
    const typename P::type value = Op::template value<Activation<Act, P>>(in);
    store(at<S>(p.out, row, col), factors.applied(value, col, n), n);
  };
  for_each_pack<Act, D>(tile, factors, pack);
}

template <class Op, class Act, DType D>
void backward_tile(const Backward& p, const void* const vectors[], void* const sums[], const Tile& tile) {
  using S = typename StorageOf<D>::type;
  DropoutFactors<D> factors(p);
  const auto pack = [&](auto precision, int64_t row, int64_t col, auto n) __attribute__((always_inline)) {
    using P = decltype(precision);
    const PackOf<Op, Backward, P, D, decltype(n)> in{p, vectors, factors, tile, row, col, n};
    const auto grad = Op::template gradients<Activation<Act, P>>(in);
    for_each_index<Op::vectors>([&](auto j)
                                    __attribute__((always_inline)) { add_to<P>(sums[j], col, grad.term[j], n); });
    if constexpr (Op::matrices == Op::operands) {
      for_each_index<Op::operands>([&](auto i) __attribute__((always_inline)) {
        if (p.grad[i].data != nullptr) store(at<S>(p.grad[i], row, col), grad.term[i], n);
      });
    } else {
      static_assert(Op::matrices == 1 && Op::operands == 2);
      if (p.grad[0].data != nullptr) store_in_turn(at<S>(p.grad[0], row, 2 * col), grad.term[0], grad.term[1], n);
    }
  };
  for_each_pack<Act, D>(tile, factors, pack);
}

inline void forward(const Forward& p, const void* const vectors[], const Tile& tile) {
  with_types(
      p, [&](auto op, auto act, auto dtype) { forward_tile<decltype(op), decltype(act), dtype()>(p, vectors, tile); });
}

inline void backward(const Backward& p, const void* const vectors[], void* const sums[], const Tile& tile) {
  with_types(p, [&](auto op, auto act, auto dtype) {
    backward_tile<decltype(op), decltype(act), dtype()>(p, vectors, sums, tile);
  });
}

inline void widen_vector(DType arithmetic, const ConstVector& vector, void* dst, int64_t n) {
  with_dtype(vector.dtype, [&](auto dtype) {
    const auto* typed = static_cast<const typename StorageOf<dtype()>::type*>(vector.data);
    if (arithmetic == DType::float64) {
      for (int64_t i = 0; i < n; ++i) static_cast<double*>(dst)[i] = widen_one(typed[i * vector.step]);
    } else if constexpr (dtype() != DType::float64) {
      for (int64_t i = 0; i < n; ++i) static_cast<float*>(dst)[i] = widen_one(typed[i * vector.step]);
    }
  });
}

template <class T>
void add_typed_rows(const T* rows, int64_t count, int64_t cols, const Vector& dst, int64_t first, int64_t n) {
  constexpr int64_t kWidth = 256;
  double sum[kWidth];
  for (int64_t col = first; col < first + n; col += kWidth) {
    const int64_t width = first + n - col < kWidth ? first + n - col : kWidth;
    for (int64_t i = 0; i < width; ++i) sum[i] = static_cast<double>(rows[col + i]);
    for (int64_t row = 1; row < count; ++row) {
      for (int64_t i = 0; i < width; ++i) sum[i] += static_cast<double>(rows[row * cols + col + i]);
    }
    with_dtype(dst.dtype, [&](auto dtype) {
      using S = typename StorageOf<dtype()>::type;
      for (int64_t i = 0; i < width; ++i) static_cast<S*>(dst.data)[(col + i) * dst.step] = narrow_double(sum[i], S{});
    });
  }
}

inline void add_rows(DType arithmetic, const void* rows, int64_t count, int64_t cols, const Vector& dst, int64_t first,
                     int64_t n) {
  if (arithmetic == DType::float64) {
    add_typed_rows(static_cast<const double*>(rows), count, cols, dst, first, n);
  } else {
    add_typed_rows(static_cast<const float*>(rows), count, cols, dst, first, n);
  }
}

// constexpr: evaluated by the compiler, so that no code of this target region runs before it is chosen.
constexpr InstructionSet table(const char* name, bool (*available)()) {
  return {name, available, forward, backward, widen_vector, add_rows};
}
