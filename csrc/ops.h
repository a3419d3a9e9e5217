// The operations on tensors: check, allocate, choose the device, fill in the structs of the waist.
// The one place below Python that knows Tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace gelu_ext {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// With dropout_p != 0 the first three drop elements of their value: which ones, the key and the counter in philox, an
// int64 tensor of two, decide, see dropout.h.

// act(x + bias): x [..., C], bias [C] -> [..., C]
Tensor bias_act(const Tensor& x, const OptionalTensor& bias, std::string_view activation, double dropout_p,
                const OptionalTensor& philox);

// The two halves of x + bias, a and b: a * act(b) for activated == "second", act(a) * b for "first".
// x [..., 2H], bias [2H] -> [..., H]
Tensor glu(const Tensor& x, const OptionalTensor& bias, std::string_view activation, std::string_view activated,
           double dropout_p, const OptionalTensor& philox);

// act(activated + activated_bias) * (linear + linear_bias), both [..., H], biases [H]
Tensor act_mul(const Tensor& activated, const Tensor& linear, const OptionalTensor& activated_bias,
               const OptionalTensor& linear_bias, std::string_view activation, double dropout_p,
               const OptionalTensor& philox);

// g sigmoid(alpha g) (u + offset) with g = min(gate, limit), u = clamp(up, -limit, limit), where the columns of x +
// bias are gate and up in turn for layout == "interleaved", the halves gate, up for "first". x [..., 2H], bias [2H] ->
// [..., H]
Tensor clamped_swiglu(const Tensor& x, const OptionalTensor& bias, double alpha, double limit, double offset,
                      std::string_view layout);

// z Phi((z - mu)/sigma), z = x + bias: x [..., C], mu, sigma and bias [C] -> [..., C]
Tensor gaussian_gelu(const Tensor& x, const Tensor& mu, const Tensor& sigma, const OptionalTensor& bias);

// Gradients of the above, one for each tensor. One that is not needed is an empty tensor of one dimension.
std::tuple<Tensor, Tensor> bias_act_backward(const Tensor& grad_out, const Tensor& x, const OptionalTensor& bias,
                                             std::string_view activation, std::array<bool, 2> needs, double dropout_p,
                                             const OptionalTensor& philox);
std::tuple<Tensor, Tensor> glu_backward(const Tensor& grad_out, const Tensor& x, const OptionalTensor& bias,
                                        std::string_view activation, std::string_view activated,
                                        std::array<bool, 2> needs, double dropout_p, const OptionalTensor& philox);
std::tuple<Tensor, Tensor> clamped_swiglu_backward(const Tensor& grad_out, const Tensor& x, const OptionalTensor& bias,
                                                   double alpha, double limit, double offset, std::string_view layout,
                                                   std::array<bool, 2> needs);
std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_gelu_backward(const Tensor& grad_out, const Tensor& x,
                                                                  const Tensor& mu, const Tensor& sigma,
                                                                  const OptionalTensor& bias,
                                                                  std::array<bool, 4> needs);
std::tuple<Tensor, Tensor, Tensor, Tensor> act_mul_backward(const Tensor& grad_out, const Tensor& activated,
                                                            const Tensor& linear, const OptionalTensor& activated_bias,
                                                            const OptionalTensor& linear_bias,
                                                            std::string_view activation, std::array<bool, 4> needs,
                                                            double dropout_p, const OptionalTensor& philox);

// The checks alone, before the dispatcher chooses by device or a transform takes over. They raise ValueError, TypeError
// or RuntimeError with "<op>: expected <what>, got <value>", where `op` is the function that was called. Tensors of
// symbolic shape pass.
void check_bias_act(const char* op, const Tensor& x, const OptionalTensor& bias, std::string_view activation,
                    double dropout_p, const OptionalTensor& philox);
void check_glu(const char* op, const Tensor& x, const OptionalTensor& bias, std::string_view activation,
               std::string_view activated, double dropout_p, const OptionalTensor& philox);
void check_act_mul(const char* op, const Tensor& activated, const Tensor& linear, const OptionalTensor& activated_bias,
                   const OptionalTensor& linear_bias, std::string_view activation, double dropout_p,
                   const OptionalTensor& philox);
void check_clamped_swiglu(const char* op, const Tensor& x, const OptionalTensor& bias, double alpha, double limit,
                          double offset, std::string_view layout);
void check_gaussian_gelu(const char* op, const Tensor& x, const Tensor& mu, const Tensor& sigma,
                         const OptionalTensor& bias);

}  // namespace gelu_ext
