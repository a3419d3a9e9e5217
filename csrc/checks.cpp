#include "checks.h"

#include <ATen/Dispatch.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <sstream>
#include <string>

namespace gelu_ext {
namespace {

std::string shape_of(at::IntArrayRef sizes) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << ']';
  return text.str();
}

std::string activation_names() {
  std::string joined;
  for (const char* name : Activations::names) joined += std::string(joined.empty() ? "'" : ", '") + name + "'";
  return joined;
}

// "float64", not "Double"
std::string dtype_text(at::ScalarType type) {
  switch (type) {
    case at::kByte: return "uint8";
    case at::kChar: return "int8";
    case at::kShort: return "int16";
    case at::kInt: return "int32";
    case at::kLong: return "int64";
    case at::kBool: return "bool";
    case at::kHalf: return "float16";
    case at::kBFloat16: return "bfloat16";
    case at::kFloat: return "float32";
    case at::kDouble: return "float64";
    case at::kComplexHalf: return "complex32";
    case at::kComplexFloat: return "complex64";
    case at::kComplexDouble: return "complex128";
    default: return c10::toString(type);
  }
}

}  // namespace

int activation_index(const char* op, std::string_view activation) {
  for (int i = 0; i < Activations::size; ++i) {
    if (activation == Activations::names[i]) return i;
  }
  TORCH_CHECK_VALUE(false, op, ": expected activation to be one of ", activation_names(), ", got '", activation, "'");
}

bool activates_first(const char* op, std::string_view activated) {
  TORCH_CHECK_VALUE(activated == "first" || activated == "second", op,
                    ": expected activated to be 'first' or 'second', got '", activated, "'");
  return activated == "first";
}

bool is_interleaved(const char* op, std::string_view layout) {
  TORCH_CHECK_VALUE(layout == "interleaved" || layout == "first", op,
                    ": expected layout to be 'interleaved' or 'first', got '", layout, "'");
  return layout == "interleaved";
}

void check_finite(const char* op, const char* name, double number) {
  TORCH_CHECK_VALUE(std::isfinite(number), op, ": expected ", name, " to be a finite number, got ", number);
}

void check_positive(const char* op, const char* name, double number) {
  TORCH_CHECK_VALUE(std::isfinite(number) && number > 0, op, ": expected ", name,
                    " to be a finite number above 0, got ", number);
}

void check_dropout(const char* op, double dropout_p, const OptionalTensor& philox, const Tensor& x) {
  TORCH_CHECK_VALUE(dropout_p >= 0 && dropout_p < 1, op, ": expected dropout_p to be at least 0 and below 1, got ",
                    dropout_p);
  if (dropout_p == 0) return;
  TORCH_CHECK_VALUE(philox.has_value(), op, ": expected philox to be a Tensor where dropout_p is not 0, got None");
  TORCH_CHECK(philox->device() == x.device(), op, ": expected philox on device ", x.device(), ", got ",
              philox->device());
  TORCH_CHECK_TYPE(philox->scalar_type() == at::kLong, op, ": expected philox of dtype int64, got ",
                   dtype_text(philox->scalar_type()));
  TORCH_CHECK_VALUE(philox->dim() == 1 && philox->size(0) == 2 && philox->is_contiguous(), op,
                    ": expected philox of shape [2], contiguous, got ", shape_of(philox->sizes()));
}

void check_all_positive(const char* op, const char* name, const Tensor& vector) {
  const auto keys =
      vector.key_set() - c10::autograd_dispatch_keyset_with_ADInplaceOrView - c10::autocast_dispatch_keyset;
  if (keys.highestPriorityTypeId() != c10::DispatchKey::CPU) return;  // its numbers are elsewhere, or none
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, vector.scalar_type(), "check_all_positive", [&] {
    const auto* data = vector.const_data_ptr<scalar_t>();
    for (int64_t i = 0; i < vector.size(0); ++i) {
      const auto number = static_cast<double>(data[i * vector.stride(0)]);
      TORCH_CHECK_VALUE(number > 0, op, ": expected ", name, " above 0, got ", number);
    }
  });
}

void check_packed(const char* op, const Tensor& x, const OptionalTensor& bias) {
  check_tensor(op, "x", x);
  check_has_columns(op, "x", x);
  TORCH_CHECK_VALUE(x.size(-1) % 2 == 0, op, ": expected x of even width (two halves), got width ", x.size(-1));
  check_bias(op, "bias", bias, "x", x);
}

DType dtype_of(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble: return DType::float64;
    case at::kFloat: return DType::float32;
    case at::kHalf: return DType::float16;
    case at::kBFloat16: return DType::bfloat16;
    default:
      TORCH_CHECK_TYPE(false, op, ": expected ", name, " of dtype float64, float32, float16 or bfloat16, got ",
                       dtype_text(t.scalar_type()));
  }
}

void check_tensor(const char* op, const char* name, const Tensor& t, std::optional<at::Device> device) {
  TORCH_CHECK_TYPE(t.defined(), op, ": expected ", name, " to be a Tensor, got None");
  TORCH_CHECK_TYPE(!t.is_nested(), op, ": expected ", name, " to be a dense tensor, got a nested one");
  TORCH_CHECK_TYPE(t.layout() == at::kStrided, op, ": expected ", name, " to be a dense tensor, got layout ",
                   t.layout());
  dtype_of(op, name, t);
  TORCH_CHECK(!device || t.device() == *device, op, ": expected ", name, " on device ", *device, ", got ", t.device());
}

void check_has_columns(const char* op, const char* name, const Tensor& t) {
  TORCH_CHECK_VALUE(t.dim() >= 1, op, ": expected ", name, " of at least 1 dimension, got a scalar");
}

void check_like(const char* op, const char* name, const Tensor& t, const char* like_name, const Tensor& like) {
  check_tensor(op, name, t, like.device());
  TORCH_CHECK_TYPE(t.scalar_type() == like.scalar_type(), op, ": expected ", name, " of the dtype of ", like_name, ", ",
                   dtype_text(like.scalar_type()), ", got ", dtype_text(t.scalar_type()));
  TORCH_CHECK_VALUE(t.sizes() == like.sizes(), op, ": expected ", name, " of the shape of ", like_name, ", ",
                    shape_of(like.sizes()), ", got ", shape_of(t.sizes()));
}

void check_bias(const char* op, const char* name, const OptionalTensor& bias, const char* x_name, const Tensor& x) {
  if (!bias) return;
  TORCH_CHECK_VALUE(x.dim() >= 1, op, ": expected ", x_name, " (with a bias) of at least 1 dimension, got a scalar");
  check_tensor(op, name, *bias, x.device());
  TORCH_CHECK_TYPE(bias->scalar_type() == x.scalar_type() || bias->scalar_type() == at::kFloat, op, ": expected ", name,
                   " of the dtype of ", x_name, ", ", dtype_text(x.scalar_type()),
                   x.scalar_type() == at::kFloat ? ", got " : ", or float32, got ", dtype_text(bias->scalar_type()));
  TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == x.size(-1), op, ": expected ", name, " of shape [", x.size(-1),
                    "], got ", shape_of(bias->sizes()));
}

void check_grad(const char* op, const Tensor& grad_out, at::IntArrayRef sizes, const Tensor& x) {
  check_tensor(op, "grad_out", grad_out, x.device());
  TORCH_CHECK_TYPE(grad_out.scalar_type() == x.scalar_type(), op, ": expected grad_out of dtype ",
                   dtype_text(x.scalar_type()), ", got ", dtype_text(grad_out.scalar_type()));
  TORCH_CHECK_VALUE(grad_out.sizes() == sizes, op, ": expected grad_out of shape ", shape_of(sizes), ", got ",
                    shape_of(grad_out.sizes()));
}

}  // namespace gelu_ext
