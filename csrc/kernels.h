// THE WAIST: what the tensor code above (ops.cpp) and the kernels below (cpu/, cuda/) say to each other.
// Plain structs of pointers, sizes, strides, dtype, operation and activation; no Tensor on either side of this file.
//
// A matrix is `rows` rows of `cols` elements with unit column stride and any row stride (0 for an expanded gradient).
// Packed and two-tensor gated activations are the same problem: the two halves are two matrices. Where the operands are
// interleaved in one matrix, it has `step` elements to a column, and so have their biases.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dropout.h"
#include "operations.h"

namespace gelu_ext {

enum class DType : int { float64, float32, float16, bfloat16 };

constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float64: return "float64";
    case DType::float32: return "float32";
    case DType::float16: return "float16";
    case DType::bfloat16: return "bfloat16";
  }
  __builtin_unreachable();
}

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float64: return 8;
    case DType::float32: return 4;
    case DType::float16: return 2;
    case DType::bfloat16: return 2;
  }
  __builtin_unreachable();
}

// How exactly to compute for a storage type, and in what type.
template <DType>
struct PrecisionOf;
template <>
struct PrecisionOf<DType::float64> {
  using type = DoublePrecision;
};
template <>
struct PrecisionOf<DType::float32> {
  using type = SinglePrecision;
};
template <>
struct PrecisionOf<DType::float16> {
  using type = LowPrecision;
};
template <>
struct PrecisionOf<DType::bfloat16> {
  using type = LowPrecision;
};

struct ConstMatrix {
  const void* data = nullptr;
  int64_t row_stride = 0;  // in elements
};

struct Matrix {
  void* data = nullptr;  // null: not wanted
  int64_t row_stride = 0;
};

struct ConstVector {
  const void* data = nullptr;    // [cols], null: no bias
  DType dtype = DType::float32;  // the problem's dtype or float32
  int step = 1;                  // in elements, from column to column
};

struct Vector {
  void* data = nullptr;  // [cols], null: not wanted
  DType dtype = DType::float32;
  int step = 1;
};

// What a forward and its backward have in common. What the operation does not have is null.
struct Problem {
  int operation;   // index into Operations
  int activation;  // index into Activations
  DType dtype;
  int64_t rows, cols;
  ConstMatrix x[Operations::most_operands];
  ConstVector vector[Operations::most_vectors];  // the operands' biases, then the operation's own vectors
  double parameter[Operations::most_parameters] = {};
  Dropout dropout;  // of the operation's value

  int operands() const { return Operations::operands[operation]; }
  int parameters() const { return Operations::parameters[operation]; }
  int matrices() const { return Operations::matrices[operation]; }
  int step() const { return operands() / matrices(); }
  int vectors() const { return Operations::vectors[operation]; }
  bool has_vectors() const {
    return std::any_of(vector, vector + vectors(), [](const ConstVector& v) { return v.data != nullptr; });
  }
};

struct Forward : Problem {
  Matrix out;
};

// grad[i] = grad_out times the derivative by z_i; grad_vector[j] the same for vector j, summed over the rows
struct Backward : Problem {
  ConstMatrix grad_out;
  Matrix grad[Operations::most_operands];
  Vector grad_vector[Operations::most_vectors];
};

// f(matrix, its elements to a column) for every matrix of a problem; `data` is null in some.
template <class F>
void for_each_matrix(Forward& p, F&& f) {
  for (ConstMatrix& x : p.x) f(x, p.step());
  f(p.out, 1);
}
template <class F>
void for_each_matrix(Backward& p, F&& f) {
  for (ConstMatrix& x : p.x) f(x, p.step());
  f(p.grad_out, 1);
  for (Matrix& grad : p.grad) f(grad, p.step());
}

// Whether in every matrix row follows row without a gap, so that they may be cut into rows anew.
template <class AnyProblem>
bool is_contiguous(AnyProblem p) {
  bool contiguous = true;
  for_each_matrix(p, [&](const auto& m, int step) {
    contiguous = contiguous && (m.data == nullptr || p.rows == 1 || m.row_stride == p.cols * step);
  });
  return contiguous;
}

// `rows` rows of `cols` elements from element `first` on, of a contiguous problem.
template <class AnyProblem>
AnyProblem recut(AnyProblem p, int64_t first, int64_t rows, int64_t cols) {
  for_each_matrix(p, [&](auto& m, int step) {
    if (m.data == nullptr) return;
    m.data = reinterpret_cast<decltype(m.data)>(reinterpret_cast<uintptr_t>(m.data) + first * step * size_of(p.dtype));
    m.row_stride = cols * step;
  });
  p.rows = rows;
  p.cols = cols;
  p.dropout.first += first;
  return p;
}

// Every entry point takes a problem with rows > 0 and cols > 0.
namespace cpu {
void forward(const Forward&);
void backward(const Backward&);

// The instruction sets that this build has and this processor can run, best first, comma-separated; the one in use.
const char* instruction_sets();
const char* instruction_set();
// Chooses one by name, for tests; false if it is not among them.
bool set_instruction_set(const char* name);
}  // namespace cpu

namespace cuda {
// What decides a launch shape: the device's size, and what __CUDA_ARCH__ was where its kernels were compiled.
struct Device {
  int multiprocessors, architecture;
};
Device device(int index);

// Launchers return a CUDA error code (0 is success): they launch on `stream` (a cudaStream_t) of the current device,
// allocate nothing and do not synchronise. backward() needs a workspace of workspace_bytes() (may be 0), aligned to 16,
// for the partial sums of the vectors' gradients.
int forward(const Forward&, const Device&, void* stream);
size_t workspace_bytes(const Backward&, const Device&);
int backward(const Backward&, void* workspace, const Device&, void* stream);
const char* error_string(int error);
// e.g. "75 80 90 100+PTX 120": what this build has code for
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

// Calls f with a value of the type that stands at `index` in a list.
template <template <class...> class List, class... Types, class F>
void with_type(List<Types...>, int index, F&& f) {
  int i = 0;
  ((i++ == index ? f(Types{}) : void()), ...);
}

// Whether the operation has kernels for the activation.
template <class Op, class Act>
constexpr bool takes() {
  return std::is_void_v<typename Op::Only> || std::is_same_v<typename Op::Only, Act>;
}

// f(Op{}, Act{}, integral_constant<DType>) for what the problem asks for
template <class F>
void with_types(const Problem& p, F&& f) {
  with_dtype(p.dtype, [&](auto dtype) {
    with_type(Activations{}, p.activation, [&](auto act) {
      with_type(Operations{}, p.operation, [&](auto op) {
        using Act = decltype(act);  // in the condition below GCC 12 would take it for a reference
        if constexpr (takes<decltype(op), Act>()) f(op, act, dtype);
      });
    });
  });
}

}  // namespace gelu_ext
