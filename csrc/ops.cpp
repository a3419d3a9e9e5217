// Each operation reads: check, see the tensors as rows, allocate, hand the problem to the device.
#include "ops.h"

#include <ATen/ops/empty.h>

#include <vector>

#include "checks.h"
#include "device.h"
#include "kernels.h"

namespace gelu_ext {
namespace {

// A tensor as rows of unit column stride: in place where the leading dimensions collapse into one with any stride,
// otherwise as a contiguous copy, which it keeps alive.
class Rows {
 public:
  explicit Rows(const Tensor& t) : tensor_(t) {
    if (!collapse()) {
      tensor_ = t.contiguous();
      collapse();
    }
  }

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  // from column `col` on
  ConstMatrix matrix(int64_t col = 0) const { return {data(col), row_stride_}; }
  Matrix mutable_matrix(int64_t col = 0) const { return {data(col), row_stride_}; }

 private:
  bool collapse() {
    const int64_t dim = tensor_.dim();
    rows_ = 1;
    cols_ = dim == 0 ? 1 : tensor_.size(-1);
    row_stride_ = cols_;
    if (tensor_.numel() == 0) {
      if (cols_ == 0) rows_ = 0;
      for (int64_t i = 0; i + 1 < dim; ++i) rows_ *= tensor_.size(i);
      return true;
    }
    if (cols_ > 1 && tensor_.stride(-1) != 1) return false;
    for (int64_t i = dim - 2; i >= 0; --i) {
      const int64_t size = tensor_.size(i), stride = tensor_.stride(i);
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
    return static_cast<char*>(const_cast<void*>(tensor_.const_data_ptr())) + col * tensor_.element_size();
  }

  Tensor tensor_;
  int64_t rows_, cols_, row_stride_;
};

constexpr Matrix kNoMatrix{nullptr, 0};

Tensor empty_like(const Tensor& x, at::IntArrayRef sizes) { return at::empty(sizes, x.options()); }

// The gradient of `t`, or the placeholder for one that is not needed.
Tensor empty_gradient(const Tensor& t, bool needed) { return needed ? empty_like(t, t.sizes()) : empty_like(t, {0}); }

Tensor empty_gradient(const OptionalTensor& bias, const Tensor& x, bool needed) {
  return needed ? empty_like(*bias, bias->sizes()) : empty_like(x, {0});
}

// A contiguous bias (or its gradient) from element `begin` on; null if there is none.
ConstVector bias_vector(const OptionalTensor& bias, int64_t begin = 0) {
  if (!bias) return {nullptr, DType::float32};
  return {static_cast<const char*>(bias->const_data_ptr()) + begin * bias->element_size(),
          dtype_of("bias", "bias", *bias)};
}

Vector gradient_vector(const Tensor& grad, bool needed, int64_t begin = 0) {
  if (!needed) return {nullptr, DType::float32};
  return {static_cast<char*>(grad.mutable_data_ptr()) + begin * grad.element_size(), dtype_of("bias", "bias", grad)};
}

OptionalTensor contiguous(const OptionalTensor& bias) { return bias ? OptionalTensor(bias->contiguous()) : bias; }

std::vector<int64_t> half_sizes(const Tensor& x) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() /= 2;
  return sizes;
}

bool is_empty(const Rows& rows) { return rows.rows() == 0 || rows.cols() == 0; }

// A bias gradient is a sum over rows: zero where there are none.
TensorPair with_zero_bias(const Tensor& grad_x, const Tensor& grad_bias) {
  grad_bias.zero_();
  return {grad_x, grad_bias};
}

// The parts that a forward and its backward have in common.
template <class Problem>
Problem bias_act(const Tensor& x, const Rows& x_rows, const OptionalTensor& bias, std::string_view approximate) {
  Problem p;
  p.dtype = dtype_of("bias_gelu", "x", x);
  p.activation = activation_index("bias_gelu", approximate);
  p.huge_pages = !Node::active();
  p.rows = x_rows.rows(), p.cols = x_rows.cols();
  p.x = x_rows.matrix();
  p.bias = bias_vector(bias);
  return p;
}

// Where the halves of a packed row begin, and how wide they are.
struct Halves {
  int64_t width, activated, linear;

  Halves(const Rows& x, std::string_view which) : width(x.cols() / 2) {
    const bool first = activates_first("geglu", which);
    activated = first ? 0 : width;
    linear = first ? width : 0;
  }
};

template <class Problem>
Problem gated_act(const Tensor& x, const Rows& x_rows, const Halves& halves, const OptionalTensor& bias,
                  std::string_view approximate) {
  Problem p;
  p.dtype = dtype_of("geglu", "x", x);
  p.activation = activation_index("geglu", approximate);
  p.huge_pages = !Node::active();
  p.rows = x_rows.rows(), p.cols = halves.width;
  p.activated = x_rows.matrix(halves.activated);
  p.linear = x_rows.matrix(halves.linear);
  p.activated_bias = bias_vector(bias, halves.activated);
  p.linear_bias = bias_vector(bias, halves.linear);
  return p;
}

template <class Problem>
Problem gated_act(const Tensor& activated, const Rows& activated_rows, const Rows& linear_rows,
                  std::string_view approximate) {
  Problem p;
  p.dtype = dtype_of("gelu_mul", "activated", activated);
  p.activation = activation_index("gelu_mul", approximate);
  p.huge_pages = !Node::active();
  p.rows = activated_rows.rows(), p.cols = activated_rows.cols();
  p.activated = activated_rows.matrix();
  p.linear = linear_rows.matrix();
  p.activated_bias = p.linear_bias = bias_vector({});
  return p;
}

// The same in the memory of grad_out, if a node may have that.
Tensor empty_gradient_over(const Tensor& grad_out, const Tensor& t, bool needed) {
  const bool fits = Node::active() && grad_out.is_cpu() && grad_out.is_contiguous() && t.is_contiguous();
  return needed && fits && grad_out.sizes() == t.sizes() ? grad_out : empty_gradient(t, needed);
}

bool is_symbolic(const Tensor& t) { return t.defined() && t.unsafeGetTensorImpl()->has_symbolic_sizes_strides(); }

}  // namespace

thread_local bool Node::active_ = false;

void check_bias_gelu(const Tensor& x, const OptionalTensor& bias, std::string_view approximate) {
  activation_index("bias_gelu", approximate);
  if (is_symbolic(x)) return;
  check_tensor("bias_gelu", "x", x);
  check_bias("bias_gelu", bias, x);
}

void check_geglu(const Tensor& x, const OptionalTensor& bias, std::string_view approximate,
                 std::string_view activated) {
  activation_index("geglu", approximate);
  activates_first("geglu", activated);
  if (is_symbolic(x)) return;
  check_tensor("geglu", "x", x);
  check_has_columns("geglu", "x", x);
  TORCH_CHECK_VALUE(x.size(-1) % 2 == 0, "geglu: expected x of even width (two halves), got width ", x.size(-1));
  check_bias("geglu", bias, x);
}

void check_gelu_mul(const Tensor& activated, const Tensor& linear, std::string_view approximate) {
  activation_index("gelu_mul", approximate);
  if (is_symbolic(activated)) return;
  check_tensor("gelu_mul", "activated", activated);
  check_like("gelu_mul", "linear", linear, "activated", activated);
}

Tensor bias_gelu(const Tensor& x, const OptionalTensor& bias, std::string_view approximate) {
  check_bias_gelu(x, bias, approximate);
  check_device("bias_gelu", x);
  const Rows x_rows(x);
  const Tensor out = empty_like(x, x.sizes());
  if (is_empty(x_rows)) return out;
  const OptionalTensor dense_bias = contiguous(bias);
  auto p = bias_act<BiasActForward>(x, x_rows, dense_bias, approximate);
  p.out = Rows(out).mutable_matrix();
  run("bias_gelu", p, x);
  return out;
}

TensorPair bias_gelu_backward(const Tensor& grad_out, const Tensor& x, const OptionalTensor& bias,
                              std::string_view approximate, bool needs_x, bool needs_bias) {
  check_bias_gelu(x, bias, approximate);
  check_grad("bias_gelu", grad_out, x.sizes(), x);
  check_device("bias_gelu", x);
  needs_bias = needs_bias && bias.has_value();
  const Rows x_rows(x);
  const Tensor grad_x = empty_gradient_over(grad_out, x, needs_x), grad_bias = empty_gradient(bias, x, needs_bias);
  if (is_empty(x_rows)) return with_zero_bias(grad_x, grad_bias);
  const OptionalTensor dense_bias = contiguous(bias);
  const Rows grad_rows(grad_out);
  auto p = bias_act<BiasActBackward>(x, x_rows, dense_bias, approximate);
  p.grad_out = grad_rows.matrix();
  p.grad_x = needs_x ? Rows(grad_x).mutable_matrix() : kNoMatrix;
  p.grad_bias = gradient_vector(grad_bias, needs_bias);
  run("bias_gelu", p, x);
  return {grad_x, grad_bias};
}

Tensor geglu(const Tensor& x, const OptionalTensor& bias, std::string_view approximate, std::string_view activated) {
  check_geglu(x, bias, approximate, activated);
  check_device("geglu", x);
  const Rows x_rows(x);
  const Tensor out = empty_like(x, half_sizes(x));
  if (is_empty(x_rows)) return out;
  const OptionalTensor dense_bias = contiguous(bias);
  auto p = gated_act<GatedActForward>(x, x_rows, Halves(x_rows, activated), dense_bias, approximate);
  p.out = Rows(out).mutable_matrix();
  run("geglu", p, x);
  return out;
}

TensorPair geglu_backward(const Tensor& grad_out, const Tensor& x, const OptionalTensor& bias,
                          std::string_view approximate, std::string_view activated, bool needs_x, bool needs_bias) {
  check_geglu(x, bias, approximate, activated);
  check_grad("geglu", grad_out, half_sizes(x), x);
  check_device("geglu", x);
  needs_bias = needs_bias && bias.has_value();
  const Rows x_rows(x);
  const Tensor grad_x = empty_gradient(x, needs_x), grad_bias = empty_gradient(bias, x, needs_bias);
  if (is_empty(x_rows)) return with_zero_bias(grad_x, grad_bias);
  const OptionalTensor dense_bias = contiguous(bias);
  const Halves halves(x_rows, activated);
  const Rows grad_rows(grad_out);
  auto p = gated_act<GatedActBackward>(x, x_rows, halves, dense_bias, approximate);
  p.grad_out = grad_rows.matrix();
  p.grad_activated = needs_x ? Rows(grad_x).mutable_matrix(halves.activated) : kNoMatrix;
  p.grad_linear = needs_x ? Rows(grad_x).mutable_matrix(halves.linear) : kNoMatrix;
  p.grad_activated_bias = gradient_vector(grad_bias, needs_bias, halves.activated);
  p.grad_linear_bias = gradient_vector(grad_bias, needs_bias, halves.linear);
  run("geglu", p, x);
  return {grad_x, grad_bias};
}

Tensor gelu_mul(const Tensor& activated, const Tensor& linear, std::string_view approximate) {
  check_gelu_mul(activated, linear, approximate);
  check_device("gelu_mul", activated);
  const Rows activated_rows(activated), linear_rows(linear);
  const Tensor out = empty_like(activated, activated.sizes());
  if (is_empty(activated_rows)) return out;
  auto p = gated_act<GatedActForward>(activated, activated_rows, linear_rows, approximate);
  p.out = Rows(out).mutable_matrix();
  run("gelu_mul", p, activated);
  return out;
}

TensorPair gelu_mul_backward(const Tensor& grad_out, const Tensor& activated, const Tensor& linear,
                             std::string_view approximate, bool needs_activated, bool needs_linear) {
  check_gelu_mul(activated, linear, approximate);
  check_grad("gelu_mul", grad_out, activated.sizes(), activated);
  check_device("gelu_mul", activated);
  const Rows activated_rows(activated), linear_rows(linear), grad_rows(grad_out);
  const Tensor grad_activated = empty_gradient_over(grad_out, activated, needs_activated);
  const Tensor grad_linear = empty_gradient(linear, needs_linear);
  if (is_empty(activated_rows)) return {grad_activated, grad_linear};
  auto p = gated_act<GatedActBackward>(activated, activated_rows, linear_rows, approximate);
  p.grad_out = grad_rows.matrix();
  p.grad_activated = needs_activated ? Rows(grad_activated).mutable_matrix() : kNoMatrix;
  p.grad_linear = needs_linear ? Rows(grad_linear).mutable_matrix() : kNoMatrix;
  p.grad_activated_bias = p.grad_linear_bias = gradient_vector({}, false);
  run("gelu_mul", p, activated);
  return {grad_activated, grad_linear};
}

}  // namespace gelu_ext
