// The checks of every operation: each violated expectation is one sentence, "<op>: expected <what>, got <value>".
#pragma once

#include <optional>
#include <string_view>

#include "kernels.h"
#include "ops.h"

namespace gelu_ext {

// Index of `activation` in Activations::names; ValueError if it is not there.
int activation_index(const char* op, std::string_view activation);

// True for "first", false for "second"; ValueError for anything else.
bool activates_first(const char* op, std::string_view activated);

// True for "interleaved", false for "first"; ValueError for anything else.
bool is_interleaved(const char* op, std::string_view layout);

// A finite number, above 0 where it has to be; else ValueError.
void check_finite(const char* op, const char* name, double number);
void check_positive(const char* op, const char* name, double number);

// 0 <= dropout_p < 1, and where it is not 0 two integers of int64 on the device of x.
void check_dropout(const char* op, double dropout_p, const OptionalTensor& philox, const Tensor& x);

// Numbers above 0 alone, where that can be seen without waiting for a device.
void check_all_positive(const char* op, const char* name, const Tensor& vector);

// x with two operands side by side, or in turn, and a bias that is laid out alike.
void check_packed(const char* op, const Tensor& x, const OptionalTensor& bias);

// The dtype of the waist; TypeError for one that has no kernels.
DType dtype_of(const char* op, const char* name, const Tensor& t);

// A dense tensor of a supported dtype on `device`, where one is given.
void check_tensor(const char* op, const char* name, const Tensor& t, std::optional<at::Device> device = {});

// At least one dimension.
void check_has_columns(const char* op, const char* name, const Tensor& t);

// The same shape, dtype and device as `like`.
void check_like(const char* op, const char* name, const Tensor& t, const char* like_name, const Tensor& like);

// A bias of x, which is called `x_name`: of shape [cols], of the dtype of x or float32, on the device of x.
void check_bias(const char* op, const char* name, const OptionalTensor& bias, const char* x_name, const Tensor& x);

// The gradient of an output of shape `sizes`, in the dtype and on the device of x.
void check_grad(const char* op, const Tensor& grad_out, at::IntArrayRef sizes, const Tensor& x);

}  // namespace gelu_ext
