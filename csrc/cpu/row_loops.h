// The row loops of one instruction set. The file that includes this one opens its target region and its own namespace
// first, so that nothing compiled here can be shared with another instruction set by the linker. Includes no standard
// header: those do not belong in a target region.

#include "pack.h"
#include "storage.h"

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
// are whole, then packs of one register.
template <class Form, DType D, class F>
GELU_EXT_FN void for_each_pack(const Tile& tile, F&& f) {
  using Precision = typename PrecisionOf<D>::type;
  using Wide = Packed<Precision, kWidth<Form, Precision>>;
  using Narrow = Packed<Precision, 1>;
  constexpr Whole<typename Wide::type> wide;
  constexpr Whole<typename Narrow::type> narrow;
  for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
    int64_t col = tile.col_begin;
    for (; col + wide <= tile.col_end; col += wide) call(f, Wide{}, row, col, wide);
    for (; col + narrow <= tile.col_end; col += narrow) f(Narrow{}, row, col, narrow);
    if (col < tile.col_end) f(Narrow{}, row, col, static_cast<int>(tile.col_end - col));
  }
}

// The pack at (row, col), and what will be wanted in a while fetched into the cache: these loops are so light that the
// processor's own prefetching falls behind where the data comes from memory, above all with two rows to read.
template <class T, class S, class N>
GELU_EXT_FN T stream(const ConstMatrix& m, const Tile& tile, int64_t row, int64_t col, N n) {
  constexpr int kAhead = 2048, kLine = 64;  // bytes
  const S* src = at<S>(m, row, col);
  // at the end of the row the beginning of the next
  const bool in_row = col + kAhead / static_cast<int>(sizeof(S)) < tile.col_end;
  const int64_t jump = in_row ? 0 : m.row_stride - (tile.col_end - tile.col_begin);
  for (int i = 0; i < static_cast<int>(n * sizeof(S)); i += kLine) {
    __builtin_prefetch(reinterpret_cast<const char*>(src + jump) + kAhead + i);
  }
  return load<T>(src, n);
}

// The bias of a pack: -0 where there is none, since x + -0 is x for every x, -0 too.
template <class P, class N>
GELU_EXT_FN typename P::type bias_at(const void* bias, int64_t col, N n) {
  using T = typename P::type;
  return bias == nullptr ? T(-0.0f) : load<T>(static_cast<const typename P::scalar*>(bias) + col, n);
}

template <class P, class N>
GELU_EXT_FN void add_to(void* sum, int64_t col, const typename P::type& terms, N n) {
  if (sum == nullptr) return;
  auto* at = static_cast<typename P::scalar*>(sum) + col;
  store(at, load<typename P::type>(at, n) + terms, n);
}

template <class Form, DType D>
void bias_act_forward_tile(const BiasActForward& p, const void* bias, const Tile& tile) {
  using S = typename StorageOf<D>::type;
  for_each_pack<Form, D>(tile, [&](auto precision, int64_t row, int64_t col, auto n) __attribute__((always_inline)) {
    using P = decltype(precision);
    using T = typename P::type;
    const T z = stream<T, S>(p.x, tile, row, col, n) + bias_at<P>(bias, col, n);
    store(at<S>(p.out, row, col), Activation<Form, P>::value(z), n);
  });
}

template <class Form, DType D>
void bias_act_backward_tile(const BiasActBackward& p, const void* bias, void* sum, const Tile& tile) {
  using S = typename StorageOf<D>::type;
  for_each_pack<Form, D>(tile, [&](auto precision, int64_t row, int64_t col, auto n) __attribute__((always_inline)) {
    using P = decltype(precision);
    using T = typename P::type;
    const T z = stream<T, S>(p.x, tile, row, col, n) + bias_at<P>(bias, col, n);
    const T grad_x = product(stream<T, S>(p.grad_out, tile, row, col, n), Activation<Form, P>::slope(z));
    add_to<P>(sum, col, grad_x, n);
    if (p.grad_x.data != nullptr) store(at<S>(p.grad_x, row, col), grad_x, n);
  });
}

template <class Form, DType D>
void gated_act_forward_tile(const GatedActForward& p, const void* activated_bias, const void* linear_bias,
                            const Tile& tile) {
  using S = typename StorageOf<D>::type;
  for_each_pack<Form, D>(tile, [&](auto precision, int64_t row, int64_t col, auto n) __attribute__((always_inline)) {
    using P = decltype(precision);
    using T = typename P::type;
    const T z = stream<T, S>(p.activated, tile, row, col, n) + bias_at<P>(activated_bias, col, n);
    const T value = Activation<Form, P>::value(z);
    const T linear = stream<T, S>(p.linear, tile, row, col, n) + bias_at<P>(linear_bias, col, n);
    store(at<S>(p.out, row, col), product(value, linear), n);
  });
}

template <class Form, DType D>
void gated_act_backward_tile(const GatedActBackward& p, const void* activated_bias, const void* linear_bias,
                             void* activated_sum, void* linear_sum, const Tile& tile) {
  using S = typename StorageOf<D>::type;
  for_each_pack<Form, D>(tile, [&](auto precision, int64_t row, int64_t col, auto n) __attribute__((always_inline)) {
    using P = decltype(precision);
    using T = typename P::type;
    const T z = stream<T, S>(p.activated, tile, row, col, n) + bias_at<P>(activated_bias, col, n);
    const auto both = Activation<Form, P>::value_and_slope(z);
    const T grad_out = stream<T, S>(p.grad_out, tile, row, col, n);
    const T linear = stream<T, S>(p.linear, tile, row, col, n) + bias_at<P>(linear_bias, col, n);
    const T grad_activated = product(grad_out * linear, both.slope), grad_linear = product(grad_out, both.value);
    add_to<P>(activated_sum, col, grad_activated, n);
    add_to<P>(linear_sum, col, grad_linear, n);
    if (p.grad_activated.data != nullptr) store(at<S>(p.grad_activated, row, col), grad_activated, n);
    if (p.grad_linear.data != nullptr) store(at<S>(p.grad_linear, row, col), grad_linear, n);
  });
}

// f(Form{}, integral_constant<DType>) for the problem's activation and dtype
template <class Problem, class F>
void with_types(const Problem& p, F&& f) {
  with_dtype(p.dtype, [&](auto dtype) { with_activation(p.activation, [&](auto form) { f(form, dtype); }); });
}

inline void bias_act_forward(const BiasActForward& p, const void* bias, const Tile& tile) {
  with_types(p, [&](auto form, auto dtype) { bias_act_forward_tile<decltype(form), dtype()>(p, bias, tile); });
}

inline void bias_act_backward(const BiasActBackward& p, const void* bias, void* sum, const Tile& tile) {
  with_types(p, [&](auto form, auto dtype) { bias_act_backward_tile<decltype(form), dtype()>(p, bias, sum, tile); });
}

inline void gated_act_forward(const GatedActForward& p, const void* activated_bias, const void* linear_bias,
                              const Tile& tile) {
  with_types(p, [&](auto form, auto dtype) {
    gated_act_forward_tile<decltype(form), dtype()>(p, activated_bias, linear_bias, tile);
  });
}

inline void gated_act_backward(const GatedActBackward& p, const void* activated_bias, const void* linear_bias,
                               void* activated_sum, void* linear_sum, const Tile& tile) {
  with_types(p, [&](auto form, auto dtype) {
    gated_act_backward_tile<decltype(form), dtype()>(p, activated_bias, linear_bias, activated_sum, linear_sum, tile);
  });
}

inline void widen_vector(DType arithmetic, DType from, const void* src, void* dst, int64_t n) {
  with_dtype(from, [&](auto dtype) {
    const auto* typed = static_cast<const typename StorageOf<dtype()>::type*>(src);
    if (arithmetic == DType::float64) {
      for (int64_t i = 0; i < n; ++i) static_cast<double*>(dst)[i] = widen_one(typed[i]);
    } else if constexpr (dtype() != DType::float64) {
      for (int64_t i = 0; i < n; ++i) static_cast<float*>(dst)[i] = widen_one(typed[i]);
    }
  });
}

template <class T>
void add_typed_rows(const T* rows, int64_t count, int64_t stride, DType to, void* dst, int64_t n) {
  constexpr int64_t kWidth = 256;
  double sum[kWidth];
  for (int64_t col = 0; col < n; col += kWidth) {
    const int64_t width = n - col < kWidth ? n - col : kWidth;
    for (int64_t i = 0; i < width; ++i) sum[i] = static_cast<double>(rows[col + i]);
    for (int64_t row = 1; row < count; ++row) {
      for (int64_t i = 0; i < width; ++i) sum[i] += static_cast<double>(rows[row * stride + col + i]);
    }
    with_dtype(to, [&](auto dtype) {
      using S = typename StorageOf<dtype()>::type;
      for (int64_t i = 0; i < width; ++i) static_cast<S*>(dst)[col + i] = narrow_double(sum[i], S{});
    });
  }
}

inline void add_rows(DType arithmetic, const void* rows, int64_t count, int64_t stride, DType to, void* dst,
                     int64_t n) {
  if (arithmetic == DType::float64) {
    add_typed_rows(static_cast<const double*>(rows), count, stride, to, dst, n);
  } else {
    add_typed_rows(static_cast<const float*>(rows), count, stride, to, dst, n);
  }
}

// constexpr: evaluated by the compiler, so that no code of this target region runs before it is chosen.
constexpr InstructionSet table(const char* name, bool (*available)()) {
  return {name,         available, bias_act_forward, bias_act_backward, gated_act_forward, gated_act_backward,
          widen_vector, add_rows};
}
