// The operations on tensors: check, allocate, choose the device, fill in the structs of the waist.
// The one place below Python that knows Tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace gelu_ext {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using TensorPair = std::tuple<Tensor, Tensor>;

// gelu(x + bias): x [..., C], bias [C] -> [..., C]
Tensor bias_gelu(const Tensor& x, const OptionalTensor& bias, std::string_view approximate);

// The two halves of x + bias, a and b: a * gelu(b) for activated == "second", gelu(a) * b for "first".
// x [..., 2H], bias [2H] -> [..., H]
Tensor geglu(const Tensor& x, const OptionalTensor& bias, std::string_view approximate, std::string_view activated);

// gelu(activated) * linear, both [..., H]
Tensor gelu_mul(const Tensor& activated, const Tensor& linear, std::string_view approximate);

// Gradients of the above. One that is not needed is an empty tensor of one dimension.
TensorPair bias_gelu_backward(const Tensor& grad_out, const Tensor& x, const OptionalTensor& bias,
                              std::string_view approximate, bool needs_x, bool needs_bias);
TensorPair geglu_backward(const Tensor& grad_out, const Tensor& x, const OptionalTensor& bias,
                          std::string_view approximate, std::string_view activated, bool needs_x, bool needs_bias);
TensorPair gelu_mul_backward(const Tensor& grad_out, const Tensor& activated, const Tensor& linear,
                             std::string_view approximate, bool needs_activated, bool needs_linear);

// While one lives, this thread's calls come from an autograd node that has a part of a training step in its hands: what
// they return is kept until the backward pass, or the grad_out that they are given is the node's own, and on a CPU may
// be written over with a gradient of its size. That saves the page faults of a fresh tensor.
class Node {
 public:
  Node() : before_(active_) { active_ = true; }
  ~Node() { active_ = before_; }
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  static bool active() { return active_; }

 private:
  static thread_local bool active_;
  bool before_;
};

// The checks alone, before the dispatcher chooses by device or a transform takes over. They raise ValueError, TypeError
// or RuntimeError with "<op>: expected <what>, got <value>". Tensors of symbolic shape pass.
void check_bias_gelu(const Tensor& x, const OptionalTensor& bias, std::string_view approximate);
void check_geglu(const Tensor& x, const OptionalTensor& bias, std::string_view approximate, std::string_view activated);
void check_gelu_mul(const Tensor& activated, const Tensor& linear, std::string_view approximate);

}  // namespace gelu_ext
