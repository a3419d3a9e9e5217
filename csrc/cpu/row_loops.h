// The row loops: plain scalar code over blocks, which the compiler vectorises for the instruction set of the file that
// includes this one. That file opens its target region and its own namespace first, so that nothing compiled here can
// be shared with another instruction set by the linker. Includes nothing: standard headers do not belong in a target
// region.

#include "block_io.h"

template <DType D>
struct Types {
  using P = typename PrecisionOf<D>::type;
  using T = typename P::type;
  using S = typename StorageOf<D>::type;
};

template <class S>
const S* at(const ConstMatrix& m, int64_t row, int64_t col) {
  return static_cast<const S*>(m.data) + row * m.row_stride + col;
}
template <class S>
S* at(const Matrix& m, int64_t row, int64_t col) {
  return m.data == nullptr ? nullptr : static_cast<S*>(m.data) + row * m.row_stride + col;
}

// f(row, col, n) for every block of the tile, in the order of memory.
template <class F>
void for_each_block(const Tile& tile, F&& f) {
  for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
    for (int64_t col = tile.col_begin; col < tile.col_end; col += kBlock) {
      const int64_t left = tile.col_end - col;
      f(row, col, static_cast<int>(left < kBlock ? left : kBlock));
    }
  }
}

template <class Form, DType D>
void bias_act_forward_tile(const BiasActForward& p, const void* bias, const Tile& tile) {
  using S = typename Types<D>::S;
  using T = typename Types<D>::T;
  using Act = Activation<Form, typename Types<D>::P>;
  Source<S, T> x_block;
  Sink<S, T> out_block;
  Bias<T> bias_block(bias);
  for_each_block(tile, [&](int64_t row, int64_t col, int n) {
    const T* __restrict__ x = x_block.read(at<S>(p.x, row, col), n);
    const T* __restrict__ b = bias_block.read(col, n);
    S* out = at<S>(p.out, row, col);
    T* __restrict__ y = out_block.begin(out, n);
#pragma GCC ivdep
    for (int i = 0, end = padded(n); i < end; ++i) y[i] = Act::value(x[i] + b[i]);
    out_block.finish(out, n);
  });
}

template <class T>
void add_to(T* __restrict__ sum, const T* __restrict__ terms, int n) {
  for (int i = 0; i < n; ++i) sum[i] += terms[i];
}

template <class Form, DType D>
void bias_act_backward_tile(const BiasActBackward& p, const void* bias, void* sum, const Tile& tile) {
  using S = typename Types<D>::S;
  using T = typename Types<D>::T;
  using Act = Activation<Form, typename Types<D>::P>;
  Source<S, T> x_block, g_block;
  Sink<S, T> out_block;
  Bias<T> bias_block(bias);
  for_each_block(tile, [&](int64_t row, int64_t col, int n) {
    const T* __restrict__ x = x_block.read(at<S>(p.x, row, col), n);
    const T* __restrict__ g = g_block.read(at<S>(p.grad_out, row, col), n);
    const T* __restrict__ b = bias_block.read(col, n);
    S* grad_x = at<S>(p.grad_x, row, col);
    T* __restrict__ d = out_block.begin(grad_x, n);
#pragma GCC ivdep
    for (int i = 0, end = padded(n); i < end; ++i) d[i] = g[i] * Act::slope(x[i] + b[i]);
    if (sum != nullptr) add_to(static_cast<T*>(sum) + col, d, n);
    out_block.finish(grad_x, n);
  });
}

template <class Form, DType D>
void gated_act_forward_tile(const GatedActForward& p, const void* activated_bias, const void* linear_bias,
                            const Tile& tile) {
  using S = typename Types<D>::S;
  using T = typename Types<D>::T;
  using Act = Activation<Form, typename Types<D>::P>;
  Source<S, T> activated_block, linear_block;
  Sink<S, T> out_block;
  Bias<T> activated_bias_block(activated_bias), linear_bias_block(linear_bias);
  for_each_block(tile, [&](int64_t row, int64_t col, int n) {
    const T* __restrict__ a = activated_block.read(at<S>(p.activated, row, col), n);
    const T* __restrict__ l = linear_block.read(at<S>(p.linear, row, col), n);
    const T* __restrict__ ab = activated_bias_block.read(col, n);
    const T* __restrict__ lb = linear_bias_block.read(col, n);
    S* out = at<S>(p.out, row, col);
    T* __restrict__ y = out_block.begin(out, n);
#pragma GCC ivdep
    for (int i = 0, end = padded(n); i < end; ++i) y[i] = Act::value(a[i] + ab[i]) * (l[i] + lb[i]);
    out_block.finish(out, n);
  });
}

template <class Form, DType D>
void gated_act_backward_tile(const GatedActBackward& p, const void* activated_bias, const void* linear_bias,
                             void* activated_sum, void* linear_sum, const Tile& tile) {
  using S = typename Types<D>::S;
  using T = typename Types<D>::T;
  using Act = Activation<Form, typename Types<D>::P>;
  Source<S, T> activated_block, linear_block, g_block;
  Sink<S, T> activated_out, linear_out;
  Bias<T> activated_bias_block(activated_bias), linear_bias_block(linear_bias);
  for_each_block(tile, [&](int64_t row, int64_t col, int n) {
    const T* __restrict__ a = activated_block.read(at<S>(p.activated, row, col), n);
    const T* __restrict__ l = linear_block.read(at<S>(p.linear, row, col), n);
    const T* __restrict__ g = g_block.read(at<S>(p.grad_out, row, col), n);
    const T* __restrict__ ab = activated_bias_block.read(col, n);
    const T* __restrict__ lb = linear_bias_block.read(col, n);
    S* grad_activated = at<S>(p.grad_activated, row, col);
    S* grad_linear = at<S>(p.grad_linear, row, col);
    T* __restrict__ da = activated_out.begin(grad_activated, n);
    T* __restrict__ dl = linear_out.begin(grad_linear, n);
#pragma GCC ivdep
    for (int i = 0, end = padded(n); i < end; ++i) {
      const auto both = Act::value_and_slope(a[i] + ab[i]);
      da[i] = g[i] * (l[i] + lb[i]) * both.slope;
      dl[i] = g[i] * both.value;
    }
    if (activated_sum != nullptr) add_to(static_cast<T*>(activated_sum) + col, da, n);
    if (linear_sum != nullptr) add_to(static_cast<T*>(linear_sum) + col, dl, n);
    activated_out.finish(grad_activated, n);
    linear_out.finish(grad_linear, n);
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
      widen(typed, static_cast<double*>(dst), n);
    } else if constexpr (dtype() != DType::float64) {
      widen(typed, static_cast<float*>(dst), n);
    }
  });
}

// dst[i] = src[i], rounded once from the double
inline void narrow_vector(DType to, const double* src, void* dst, int64_t n) {
  with_dtype(to, [&](auto dtype) {
    using S = typename StorageOf<dtype()>::type;
    for (int64_t i = 0; i < n; ++i) static_cast<S*>(dst)[i] = narrow_double(src[i], S{});
  });
}

// constexpr: evaluated by the compiler, so that no code of this target region runs before it is chosen.
constexpr InstructionSet table(const char* name, bool (*available)()) {
  return {name,         available,    bias_act_forward, bias_act_backward, gated_act_forward, gated_act_backward,
          widen_vector, narrow_vector};
}
