// Each operation reads: check, see the tensors as rows, allocate, hand the problem to the device.
#include "ops.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_cpu_dispatch.h>

#include <vector>

#include "checks.h"
#include "device.h"
#include "kernels.h"

namespace gelu_ext {
namespace {

// A tensor, or a vector, as rows of unit column stride: in place where the leading dimensions collapse into one with
// any stride, otherwise as a contiguous copy, which it keeps alive. The tensor itself must outlive it.
class Rows {
 public:
  explicit Rows(const Tensor& t) : tensor_(c10::MaybeOwned<Tensor>::borrowed(t)) {
    if (!collapse()) {
      tensor_ = c10::MaybeOwned<Tensor>::owned(t.contiguous());
      collapse();
    }
  }

  int64_t rows() const { return rows_; }
  // from column `col` on
  ConstMatrix matrix(int64_t col = 0) const { return {data(col), row_stride_}; }
  Matrix mutable_matrix(int64_t col = 0) const { return {data(col), row_stride_}; }

 private:
  bool collapse() {
    const Tensor& t = *tensor_;
    const int64_t dim = t.dim();
    rows_ = 1;
    cols_ = dim == 0 ? 1 : t.size(-1);
    row_stride_ = cols_;
    if (t.numel() == 0) {
      if (cols_ == 0) rows_ = 0;
      for (int64_t i = 0; i + 1 < dim; ++i) rows_ *= t.size(i);
      return true;
    }
    if (cols_ > 1 && t.stride(-1) != 1) return false;
    for (int64_t i = dim - 2; i >= 0; --i) {
      const int64_t size = t.size(i), stride = t.stride(i);
      if (size == 1) continue;
      if (rows_ == 1) {
        row_stride_ = stride;
      } else if (stride != rows_ * row_stride_) {
        return false;
      }
      rows_ *= size;
    }
    return true;
  }

  void* data(int64_t col) const {
    return static_cast<char*>(const_cast<void*>(tensor_->const_data_ptr())) + col * tensor_->element_size();
  }

  c10::MaybeOwned<Tensor> tensor_;
  int64_t rows_, cols_, row_stride_;
};

// Where something lies in the tensors of a call: from element `first` of each row of one of them on, or nowhere.
struct Place {
  int tensor = -1;
  int64_t first = 0;
  int step = 1;  // of a vector, from column to column
};

// How a call's arguments hold the matrices of an operation and its vectors, `cols` columns wide each.
struct Layout {
  int operation;
  int64_t cols;
  Place x[Operations::most_operands], vector[Operations::most_vectors];
  double parameter[Operations::most_parameters] = {};
};

int64_t width_of(const Tensor& x) { return x.dim() == 0 ? 1 : x.size(-1); }

// x, bias
Layout whole(const Tensor& x) { return {Operations::index<BiasAct>(), width_of(x), {{0, 0}}, {{1, 0}}}; }

// packed x, packed bias
Layout halves(const Tensor& x, bool first_is_activated) {
  const int64_t width = x.size(-1) / 2, a = first_is_activated ? 0 : width, b = width - a;
  return {Operations::index<ActMul>(), width, {{0, a}, {0, b}}, {{1, a}, {1, b}}};
}

// activated, linear, activated_bias, linear_bias
Layout pair(const Tensor& x) { return {Operations::index<ActMul>(), width_of(x), {{0, 0}, {1, 0}}, {{2, 0}, {3, 0}}}; }

// packed x, packed bias
Layout clamped(const Tensor& x, double alpha, double limit, double offset, bool interleaved) {
  const int64_t width = x.size(-1) / 2;
  Layout layout = {Operations::index<ClampedSwiglu>(), width, {{0, 0}, {0, width}}, {{1, 0}, {1, width}}};
  if (interleaved) layout = {Operations::index<InterleavedClampedSwiglu>(), width, {{0, 0}}, {{1, 0, 2}, {1, 1, 2}}};
  const auto numbers = ClampedSwiglu::numbers(alpha, limit, offset, x.scalar_type() == at::kDouble);
  std::copy(numbers.begin(), numbers.end(), layout.parameter);
  return layout;
}

// x, mu, sigma, bias
Layout gaussian(const Tensor& x) {
  return {Operations::index<GaussianGelu>(), width_of(x), {{0, 0}}, {{3, 0}, {1, 0}, {2, 0}}};
}

std::vector<int64_t> half_sizes(const Tensor& x) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() /= 2;
  return sizes;
}

Tensor empty_like(const Tensor& x, at::IntArrayRef sizes) {
  if (x.is_cpu()) return at::cpu::empty(sizes, x.options());  // not through the dispatcher: 0.2 us less
  return at::empty(sizes, x.options());
}

const Tensor* pointer(const OptionalTensor& t) { return t ? &*t : nullptr; }

Dropout dropout(double p, const OptionalTensor& philox) {
  if (p == 0) return {};
  return {p, static_cast<const int64_t*>(philox->const_data_ptr())};
}

// A call of an operation, its tensors seen as rows. The first tensor is a matrix and there; others may be null.
template <size_t N>
class Call {
 public:
  Call(const char* op, const Layout& layout, std::string_view activation, std::array<const Tensor*, N> tensors,
       const Dropout& dropout = {})
      : op_(op), layout_(layout), activation_(activation), tensors_(tensors), dropout_(dropout), x_(*tensors[0]) {
    check_device(op, x_);
  }

  Tensor forward(at::IntArrayRef sizes) {
    const Tensor out = empty_like(x_, sizes);
    if (x_.numel() == 0) return out;
    Forward p;
    fill(p);
    p.out = {out.mutable_data_ptr(), p.cols};
    run(op_, p, x_);
    return out;
  }

  auto backward(const Tensor& grad_out, const std::array<bool, N>& needs) {
    std::array<Tensor, N> grads;
    for (size_t i = 0; i < N; ++i) {
      const bool needed = needs[i] && tensors_[i] != nullptr;
      grads[i] = needed ? empty_like(*tensors_[i], tensors_[i]->sizes()) : empty_like(x_, {0});
    }
    if (x_.numel() == 0) {
      for (const Tensor& grad : grads) grad.zero_();  // a bias gradient is a sum over rows: zero where there are none
      return std::tuple_cat(grads);
    }
    const Rows grad_rows(grad_out);
    Backward p;
    fill(p);
    p.grad_out = grad_rows.matrix();
    const auto matrix = [&](const Place& at) {
      return has(at) && needs[at.tensor] ? Rows(grads[at.tensor]).mutable_matrix(at.first) : Matrix();
    };
    for (int i = 0; i < p.matrices(); ++i) p.grad[i] = matrix(layout_.x[i]);
    for (int j = 0; j < p.vectors(); ++j) {
      p.grad_vector[j] = {matrix(layout_.vector[j]).data, p.vector[j].dtype, p.vector[j].step};
    }
    run(op_, p, x_);
    return std::tuple_cat(grads);
  }

 private:
  bool has(const Place& place) const { return place.tensor >= 0 && tensors_[place.tensor] != nullptr; }

  void fill(Problem& p) {
    for (size_t i = 0; i < N; ++i) {
      if (tensors_[i] != nullptr) rows_[i].emplace(*tensors_[i]);
    }
    p.operation = layout_.operation;
    p.activation = activation_index(op_, activation_);
    p.dtype = dtype_of(op_, "x", x_);
    p.rows = rows_[0]->rows(), p.cols = layout_.cols;
    p.dropout = dropout_;
    std::copy(std::begin(layout_.parameter), std::end(layout_.parameter), p.parameter);
    for (int i = 0; i < p.matrices(); ++i) p.x[i] = rows_[layout_.x[i].tensor]->matrix(layout_.x[i].first);
    for (int j = 0; j < p.vectors(); ++j) {
      const auto [tensor, first, step] = layout_.vector[j];
      if (!has(layout_.vector[j])) continue;
      p.vector[j] = {rows_[tensor]->matrix(first).data, dtype_of(op_, "a bias", *tensors_[tensor]), step};
    }
  }

  const char* op_;
  Layout layout_;
  std::string_view activation_;
  std::array<const Tensor*, N> tensors_;
  Dropout dropout_;
  const Tensor& x_;
  std::array<std::optional<Rows>, N> rows_;  // keep what had to be copied alive
};

template <class... Tensors>
bool any_symbolic(const Tensors&... tensors) {
  const auto is_symbolic = [](const Tensor* t) {
    return t != nullptr && t->defined() && t->unsafeGetTensorImpl()->has_symbolic_sizes_strides();
  };
  return (is_symbolic(tensors) || ...);
}

}  // namespace

void check_bias_act(const char* op, const Tensor& x, const OptionalTensor& bias, std::string_view activation,
                    double dropout_p, const OptionalTensor& philox) {
  activation_index(op, activation);
  check_dropout(op, dropout_p, philox, x);
  if (any_symbolic(&x, pointer(bias))) return;
  check_tensor(op, "x", x);
  check_bias(op, "bias", bias, "x", x);
}

void check_glu(const char* op, const Tensor& x, const OptionalTensor& bias, std::string_view activation,
               std::string_view activated, double dropout_p, const OptionalTensor& philox) {
  activation_index(op, activation);
  activates_first(op, activated);
  check_dropout(op, dropout_p, philox, x);
  if (!any_symbolic(&x, pointer(bias))) check_packed(op, x, bias);
}

void check_act_mul(const char* op, const Tensor& activated, const Tensor& linear, const OptionalTensor& activated_bias,
                   const OptionalTensor& linear_bias, std::string_view activation, double dropout_p,
                   const OptionalTensor& philox) {
  activation_index(op, activation);
  check_dropout(op, dropout_p, philox, activated);
  if (any_symbolic(&activated, &linear, pointer(activated_bias), pointer(linear_bias))) return;
  check_tensor(op, "activated", activated);
  check_like(op, "linear", linear, "activated", activated);
  check_bias(op, "activated_bias", activated_bias, "activated", activated);
  check_bias(op, "linear_bias", linear_bias, "activated", activated);
}

void check_clamped_swiglu(const char* op, const Tensor& x, const OptionalTensor& bias, double alpha, double limit,
                          double offset, std::string_view layout) {
  check_positive(op, "alpha", alpha);
  check_positive(op, "limit", limit);
  check_finite(op, "offset", offset);
  is_interleaved(op, layout);
  if (!any_symbolic(&x, pointer(bias))) check_packed(op, x, bias);
}

void check_gaussian_gelu(const char* op, const Tensor& x, const Tensor& mu, const Tensor& sigma,
                         const OptionalTensor& bias) {
  if (any_symbolic(&x, &mu, &sigma, pointer(bias))) return;
  check_tensor(op, "x", x);
  check_bias(op, "mu", mu, "x", x);
  check_bias(op, "sigma", sigma, "x", x);
  check_bias(op, "bias", bias, "x", x);
  check_all_positive(op, "sigma", sigma);
}

Tensor bias_act(const Tensor& x, const OptionalTensor& bias, std::string_view activation, double dropout_p,
                const OptionalTensor& philox) {
  check_bias_act("bias_act", x, bias, activation, dropout_p, philox);
  return Call<2>("bias_act", whole(x), activation, {&x, pointer(bias)}, dropout(dropout_p, philox)).forward(x.sizes());
}

std::tuple<Tensor, Tensor> bias_act_backward(const Tensor& grad_out, const Tensor& x, const OptionalTensor& bias,
                                             std::string_view activation, std::array<bool, 2> needs, double dropout_p,
                                             const OptionalTensor& philox) {
  check_bias_act("bias_act", x, bias, activation, dropout_p, philox);
  check_grad("bias_act", grad_out, x.sizes(), x);
  return Call<2>("bias_act", whole(x), activation, {&x, pointer(bias)}, dropout(dropout_p, philox))
      .backward(grad_out, needs);
}

Tensor glu(const Tensor& x, const OptionalTensor& bias, std::string_view activation, std::string_view activated,
           double dropout_p, const OptionalTensor& philox) {
  check_glu("glu", x, bias, activation, activated, dropout_p, philox);
  const Layout layout = halves(x, activates_first("glu", activated));
  return Call<2>("glu", layout, activation, {&x, pointer(bias)}, dropout(dropout_p, philox)).forward(half_sizes(x));
}

std::tuple<Tensor, Tensor> glu_backward(const Tensor& grad_out, const Tensor& x, const OptionalTensor& bias,
                                        std::string_view activation, std::string_view activated,
                                        std::array<bool, 2> needs, double dropout_p, const OptionalTensor& philox) {
  check_glu("glu", x, bias, activation, activated, dropout_p, philox);
  check_grad("glu", grad_out, half_sizes(x), x);
  const Layout layout = halves(x, activates_first("glu", activated));
  return Call<2>("glu", layout, activation, {&x, pointer(bias)}, dropout(dropout_p, philox)).backward(grad_out, needs);
}

Tensor act_mul(const Tensor& activated, const Tensor& linear, const OptionalTensor& activated_bias,
               const OptionalTensor& linear_bias, std::string_view activation, double dropout_p,
               const OptionalTensor& philox) {
  check_act_mul("act_mul", activated, linear, activated_bias, linear_bias, activation, dropout_p, philox);
  return Call<4>("act_mul", pair(activated), activation,
                 {&activated, &linear, pointer(activated_bias), pointer(linear_bias)}, dropout(dropout_p, philox))
      .forward(activated.sizes());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> act_mul_backward(const Tensor& grad_out, const Tensor& activated,
                                                            const Tensor& linear, const OptionalTensor& activated_bias,
                                                            const OptionalTensor& linear_bias,
                                                            std::string_view activation, std::array<bool, 4> needs,
                                                            double dropout_p, const OptionalTensor& philox) {
  check_act_mul("act_mul", activated, linear, activated_bias, linear_bias, activation, dropout_p, philox);
  check_grad("act_mul", grad_out, activated.sizes(), activated);
  return Call<4>("act_mul", pair(activated), activation,
                 {&activated, &linear, pointer(activated_bias), pointer(linear_bias)}, dropout(dropout_p, philox))
      .backward(grad_out, needs);
}

Tensor clamped_swiglu(const Tensor& x, const OptionalTensor& bias, double alpha, double limit, double offset,
                      std::string_view layout) {
  check_clamped_swiglu("clamped_swiglu", x, bias, alpha, limit, offset, layout);
  const Layout of = clamped(x, alpha, limit, offset, is_interleaved("clamped_swiglu", layout));
  return Call<2>("clamped_swiglu", of, Silu::name, {&x, pointer(bias)}).forward(half_sizes(x));
}

std::tuple<Tensor, Tensor> clamped_swiglu_backward(const Tensor& grad_out, const Tensor& x, const OptionalTensor& bias,
                                                   double alpha, double limit, double offset, std::string_view layout,
                                                   std::array<bool, 2> needs) {
  check_clamped_swiglu("clamped_swiglu", x, bias, alpha, limit, offset, layout);
  check_grad("clamped_swiglu", grad_out, half_sizes(x), x);
  const Layout of = clamped(x, alpha, limit, offset, is_interleaved("clamped_swiglu", layout));
  return Call<2>("clamped_swiglu", of, Silu::name, {&x, pointer(bias)}).backward(grad_out, needs);
}

Tensor gaussian_gelu(const Tensor& x, const Tensor& mu, const Tensor& sigma, const OptionalTensor& bias) {
  check_gaussian_gelu("gaussian_gelu", x, mu, sigma, bias);
  return Call<4>("gaussian_gelu", gaussian(x), Gelu::name, {&x, &mu, &sigma, pointer(bias)}).forward(x.sizes());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_gelu_backward(const Tensor& grad_out, const Tensor& x,
                                                                  const Tensor& mu, const Tensor& sigma,
                                                                  const OptionalTensor& bias,
                                                                  std::array<bool, 4> needs) {
  check_gaussian_gelu("gaussian_gelu", x, mu, sigma, bias);
  check_grad("gaussian_gelu", grad_out, x.sizes(), x);
  return Call<4>("gaussian_gelu", gaussian(x), Gelu::name, {&x, &mu, &sigma, pointer(bias)}).backward(grad_out, needs);
}

}  // namespace gelu_ext
