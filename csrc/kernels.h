// THE WAIST: what the tensor code above (ops.cpp) and the kernels below (cpu/, cuda/) say to each other.
// Plain structs of pointers, sizes, strides, dtype and activation; no Tensor on either side of this file.
//
// A matrix is `rows` rows of `cols` elements with unit column stride and any row stride (0 for an expanded gradient).
// Packed and two-tensor gated activations are the same problem: the two halves are two matrices.
#pragma once

#include <cstddef>
#include <cstdint>

#include "activations.h"

namespace gelu_ext {

enum class DType : int { float64, float32, float16, bfloat16 };

constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float64: return "float64";
    case DType::float32: return "float32";
    case DType::float16: return "float16";
    default: return "bfloat16";
  }
}

constexpr size_t size_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// How exactly to compute for a storage type, and in what type.
template <DType>
struct PrecisionOf {
  using type = HalfPrecision;
};
template <>
struct PrecisionOf<DType::float64> {
  using type = DoublePrecision;
};
template <>
struct PrecisionOf<DType::float32> {
  using type = SinglePrecision;
};

struct ConstMatrix {
  const void* data;
  int64_t row_stride;  // in elements
};

struct Matrix {
  void* data;  // null: not wanted
  int64_t row_stride;
};

struct ConstVector {
  const void* data;  // [cols], null: no bias
  DType dtype;       // the problem's dtype or float32
};

struct Vector {
  void* data;  // [cols], null: not wanted
  DType dtype;
};

// out = act(x + bias)
struct BiasActForward {
  DType dtype;
  int activation;  // index into Activations::names
  int64_t rows, cols;
  ConstMatrix x;
  ConstVector bias;
  Matrix out;
  bool huge_pages = true;  // may be asked for, on a CPU
};

// grad_x = grad_out * act'(x + bias), grad_bias = sum of it over rows
struct BiasActBackward {
  DType dtype;
  int activation;
  int64_t rows, cols;
  ConstMatrix grad_out, x;
  ConstVector bias;
  Matrix grad_x;  // may be grad_out's memory on a CPU
  Vector grad_bias;
  bool huge_pages = true;
};

// out = act(activated + activated_bias) * (linear + linear_bias)
struct GatedActForward {
  DType dtype;
  int activation;
  int64_t rows, cols;
  ConstMatrix activated, linear;
  ConstVector activated_bias, linear_bias;
  Matrix out;
  bool huge_pages = true;
};

// grad_activated = grad_out * (linear + linear_bias) * act'(activated + activated_bias)
// grad_linear    = grad_out * act(activated + activated_bias)
// and the sums of both over rows
struct GatedActBackward {
  DType dtype;
  int activation;
  int64_t rows, cols;
  ConstMatrix grad_out, activated, linear;
  ConstVector activated_bias, linear_bias;
  Matrix grad_activated, grad_linear;  // one of them may be grad_out's memory on a CPU
  Vector grad_activated_bias, grad_linear_bias;
  bool huge_pages = true;
};

// Every entry point takes a problem with rows > 0 and cols > 0.
namespace cpu {
void bias_act_forward(const BiasActForward&);
void bias_act_backward(const BiasActBackward&);
void gated_act_forward(const GatedActForward&);
void gated_act_backward(const GatedActBackward&);

// The instruction sets that this build has and this processor can run, best first, comma-separated; the one in use.
const char* instruction_sets();
const char* instruction_set();
// Chooses one by name, for tests; false if it is not among them.
bool set_instruction_set(const char* name);
}  // namespace cpu

namespace cuda {
// The device's properties that choose a launch shape.
struct Device {
  int multiprocessors;
};
Device device(int index);

// Launchers return a CUDA error code (0 is success): they launch on `stream` (a cudaStream_t) of the current device,
// allocate nothing and do not synchronise. The backward ones need a workspace of workspace_bytes() (may be 0), aligned
// to 16, for the partial sums of the bias gradients.
size_t workspace_bytes(const BiasActBackward&, const Device&);
size_t workspace_bytes(const GatedActBackward&, const Device&);
int bias_act_forward(const BiasActForward&, const Device&, void* stream);
int bias_act_backward(const BiasActBackward&, void* workspace, const Device&, void* stream);
int gated_act_forward(const GatedActForward&, const Device&, void* stream);
int gated_act_backward(const GatedActBackward&, void* workspace, const Device&, void* stream);
const char* error_string(int error);
// e.g. "75 80 90 120+PTX": what this build has code for
const char* architectures();
}  // namespace cuda

// Calls f with a std::integral_constant<DType, ...>.
template <class F>
void with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float64: return f(std::integral_constant<DType, DType::float64>{});
    case DType::float32: return f(std::integral_constant<DType, DType::float32>{});
    case DType::float16: return f(std::integral_constant<DType, DType::float16>{});
    case DType::bfloat16: return f(std::integral_constant<DType, DType::bfloat16>{});
  }
}

// Calls f with a value of the activation's struct.
template <class... Forms, class F>
void with_activation(ActivationList<Forms...>, int activation, F&& f) {
  int index = 0;
  ((index++ == activation ? f(Forms{}) : void()), ...);
}
template <class F>
void with_activation(int activation, F&& f) {
  with_activation(Activations{}, activation, f);
}

}  // namespace gelu_ext
