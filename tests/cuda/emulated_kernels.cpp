// Runs the kernels of csrc/cuda/ on the CPU, through the launchers of kernels.h, and checks them against the truth.
//
//     emulated_kernels {small|large} order...
//
// Every operation, activation and dtype, over shapes and layouts; each problem once in every order of threads and
// blocks (see cuda_emulator.h). The first run is compared with the truth, the others with the first, bit for bit.
#include <algorithm>
#include <random>

#include "../native/truth.h"
#include "cuda_emulator.h"
#include "kernels.h"
#include "test_matrix.h"
#include "tolerance.h"

namespace {

using namespace emulated;
using namespace gelu_ext;

enum class Operation { bias_act, act_mul, clamped_swiglu, interleaved_clamped_swiglu };
constexpr const char* kOperationNames[] = {"bias_act", "act_mul", "clamped_swiglu", "interleaved_clamped_swiglu"};
constexpr double kAlpha = 1.702, kLimit = 2, kOffset = 1;  // of the last two; alpha is that of gelu_sigmoid

enum class BiasKind { none, own, float32, first_only, second_only };

struct Layout {
  const char* name;
  int padding;    // elements between rows
  int offset;     // elements by which every pointer misses a 16-byte boundary
  bool packed;    // the two halves of a gated problem lie side by side
  bool repeated;  // the first input is one row, with stride 0
};

struct Case {
  Operation operation;
  bool backward;
  DType dtype;
  int activation;
  int64_t rows, cols;
  Layout layout;
  BiasKind bias = BiasKind::own;
  int multiprocessors = 132;
  unsigned wanted = 0b1111;  // outputs: two matrices, two bias gradients
  bool special = false;      // infinities, NaN and the like among the inputs
  int64_t far_stride = 0;    // elements from row to row, if not 0
  int only = -1;             // the layout's padding and offset for this allocation only, counted from 0

  bool gated() const { return operation != Operation::bias_act; }
  bool interleaved() const { return operation == Operation::interleaved_clamped_swiglu; }
  bool clamped() const { return interleaved() || operation == Operation::clamped_swiglu; }
  int step() const { return interleaved() ? 2 : 1; }

  std::string name() const {
    return std::string(kOperationNames[static_cast<int>(operation)]) + (backward ? "_backward " : "_forward ") +
           Activations::names[activation] + " " + dtype_name(dtype) + " [" + std::to_string(rows) + ", " +
           std::to_string(cols) + "] " + layout.name + ", bias kind " + std::to_string(static_cast<int>(bias)) + ", " +
           std::to_string(multiprocessors) + " multiprocessors, wanted " + std::to_string(wanted) +
           (special ? ", special values" : "") + (only >= 0 ? ", only allocation " + std::to_string(only) : "");
  }
};

uint64_t checksum = 0xcbf29ce484222325u;  // of all results; every NaN counts as the same
int64_t cases_run = 0;

void add_to_checksum(double value) {
  uint64_t bits = 0;
  if (!std::isnan(value)) std::memcpy(&bits, &value, sizeof(bits));
  checksum = (checksum ^ bits) * 0x100000001b3u;
  checksum ^= checksum >> 29;
}

// One problem: its matrices, how to launch it, and what the results should be.
class Problem {
 public:
  explicit Problem(const Case& c) : c_(c), random_(static_cast<unsigned>(c.rows * 7919 + c.cols * 31 + c.activation)) {
    if (c.backward) inputs_.push_back(grad_out_ = make_input(c.layout.repeated, c.cols));
    make_pair(activated_, linear_, c.gated(), true);
    for (const View& input : inputs_) fill(input);
    make_biases();
    make_outputs();
  }

  void run(const std::vector<std::string>& orders) {
    std::vector<std::vector<char>> inputs_before, first_results;
    for (const View& input : inputs_) inputs_before.push_back(input.memory->copy());
    for (const std::string& order : orders) {
      cuda_emulator::set_order(order);
      for (const View& view : outputs_) {
        if (view) view.memory->refill();
      }
      launch();
      check_guards();
      std::vector<std::vector<char>> results;
      for (const View& view : outputs_) results.push_back(view ? view.memory->copy() : std::vector<char>());
      if (&order == &orders.front()) {
        check_values();
        check_padding();
        first_results = results;
      } else if (results != first_results) {
        fail(c_.name() + ": order " + order + " gives other bits than order " + orders.front());
      }
    }
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (inputs_[i].memory->copy() != inputs_before[i]) fail(c_.name() + ": an input was written");
    }
    ++cases_run;
  }

 private:
  // --- the matrices --------------------------------------------------------------------------------------------------

  View make_input(bool repeated, int64_t cols) {
    if (!repeated) return new_matrix(c_.dtype, c_.rows, cols);
    View row = new_matrix(c_.dtype, 1, cols);
    row.rows = c_.rows;
    row.row_stride = 0;
    return row;
  }
  View new_matrix(DType dtype, int64_t rows, int64_t cols) {
    const bool regular = c_.only >= 0 && c_.only != allocations_;
    ++allocations_;
    const int64_t stride = c_.far_stride != 0 ? c_.far_stride : cols + (regular ? 0 : c_.layout.padding);
    return matrix(dtype, rows, cols, stride, regular ? 0 : c_.layout.offset);
  }

  // The columns of a matrix in turn.
  static void interleave(View& first, View& second, const View& whole) {
    first = second = whole;
    first.cols = second.cols = whole.cols / 2;
    first.step = second.step = 2;
    second.first = 1;
  }

  // Two matrices, or two halves of one, or one in turn; `second` null for a problem that is not gated.
  void make_pair(View& first, View& second, bool gated, bool is_input) {
    if (gated && c_.interleaved()) {
      const bool repeated = is_input && c_.layout.repeated && !c_.backward;
      interleave(first, second, make_input(repeated, 2 * c_.cols));
    } else if (gated && c_.layout.packed) {
      first = second = new_matrix(c_.dtype, c_.rows, 2 * c_.cols);
      first.cols = second.cols = c_.cols;
      (c_.activation % 2 == 0 ? first : second).first = c_.cols;
    } else {
      first = make_input(is_input && c_.layout.repeated && !c_.backward, c_.cols);
      if (gated) second = new_matrix(c_.dtype, c_.rows, c_.cols);
    }
    if (!is_input) return;
    inputs_.push_back(first);
    if (gated) inputs_.push_back(second);
  }

  void make_biases() {
    const DType dtype = c_.bias == BiasKind::float32 ? DType::float32 : c_.dtype;
    if (c_.interleaved()) {
      if (c_.bias != BiasKind::none) interleave(bias_[0], bias_[1], new_matrix(dtype, 1, 2 * c_.cols));
    } else {
      if (c_.bias != BiasKind::none && c_.bias != BiasKind::second_only) bias_[0] = new_matrix(dtype, 1, c_.cols);
      if (c_.gated() && c_.bias != BiasKind::none && c_.bias != BiasKind::first_only) {
        bias_[1] = new_matrix(dtype, 1, c_.cols);
      }
    }
    for (const View& bias : bias_) {
      if (!bias) continue;
      inputs_.push_back(bias);
      for (int64_t col = 0; col < c_.cols; ++col) bias.set(0, col, normal_(random_));
    }
  }

  void make_outputs() {
    make_pair(outputs_[0], outputs_[1], c_.gated() && c_.backward, false);
    if (c_.backward && c_.interleaved() && bias_[0]) {
      interleave(outputs_[2], outputs_[3], new_matrix(bias_[0].dtype, 1, 2 * c_.cols));
    } else if (c_.backward) {
      for (int half = 0; half < 2; ++half) {
        if (bias_[half]) outputs_[2 + half] = new_matrix(bias_[half].dtype, 1, c_.cols);
      }
    }
    for (int i = 0; i < 4; ++i) {
      if ((c_.wanted >> i / c_.step() * c_.step() & 1) == 0) outputs_[i] = View();
    }
  }

  void fill(const View& input) {
    static constexpr double kSpecial[] = {NAN, INFINITY, -INFINITY, 0.0, -0.0, 1e30, -1e30, 1e-30, -1e-30, 6e4, -6e4};
    for (int64_t row = 0; row < (input.row_stride == 0 ? 1 : input.rows); ++row) {
      for (int64_t col = 0; col < input.cols; ++col) {
        double x = normal_(random_) * (random_() % 8 == 0 ? 4 : 1.5);
        if (c_.special && random_() % 4 == 0) x = kSpecial[random_() % std::size(kSpecial)];
        input.set(row, col, x);
      }
    }
  }

  // --- the launch ----------------------------------------------------------------------------------------------------

  void launch() {
    const cuda::Device device = {c_.multiprocessors, 0};
    int error = 0;
    if (!c_.backward) {
      Forward p;
      set_operands(p);
      p.out = {outputs_[0].data(), outputs_[0].row_stride};
      error = cuda::forward(p, device, nullptr);
    } else {
      Backward p;
      set_operands(p);
      p.grad_out = {grad_out_.data(), grad_out_.row_stride};
      for (int i = 0; i < p.matrices(); ++i) p.grad[i] = {outputs_[i].data(), outputs_[i].row_stride};
      for (int i = 0; i < p.operands(); ++i) {
        p.grad_vector[i] = {outputs_[2 + i].data(), outputs_[2 + i].dtype, outputs_[2 + i].step};
      }
      with_workspace(cuda::workspace_bytes(p, device),
                     [&](void* workspace) { error = cuda::backward(p, workspace, device, nullptr); });
    }
    if (error != 0) fail(c_.name() + ": launch failed: " + cuda::error_string(error));
  }

  void set_operands(gelu_ext::Problem& p) const {
    constexpr int kIndices[] = {Operations::index<BiasAct>(), Operations::index<ActMul>(),
                                Operations::index<ClampedSwiglu>(), Operations::index<InterleavedClampedSwiglu>()};
    p.operation = kIndices[static_cast<int>(c_.operation)];
    p.activation = c_.activation, p.dtype = c_.dtype, p.rows = c_.rows, p.cols = c_.cols;
    const auto numbers = ClampedSwiglu::numbers(kAlpha, kLimit, kOffset, c_.dtype == DType::float64);
    if (c_.clamped()) std::copy(numbers.begin(), numbers.end(), p.parameter);
    for (int i = 0; i < p.matrices(); ++i) {
      const View& x = i == 0 ? activated_ : linear_;
      p.x[i] = {x.data(), x.row_stride};
    }
    for (int i = 0; i < p.operands(); ++i) p.vector[i] = {bias_[i].data(), bias_[i].dtype, bias_[i].step};
  }

  // Of exact size and 16-byte alignment, no more.
  template <class F>
  void with_workspace(size_t bytes, F&& f) {
    Memory workspace(bytes, 16);
    f(workspace.data());
    if (!workspace.guards_hold()) fail(c_.name() + ": wrote outside of the workspace");
  }

  // --- what the results should be ------------------------------------------------------------------------------------

  void check_guards() {
    for (const View& view : outputs_) {
      if (view && !view.memory->guards_hold()) fail(c_.name() + ": wrote outside of an output");
    }
  }

  // Between the rows of an output, and in a half that is not wanted, nothing is written.
  void check_padding() {
    for (int i = 0; i < 2; ++i) {
      if (!outputs_[i] || outputs_[i].memory->is_sparse()) continue;
      std::vector<char> bytes = outputs_[i].memory->copy();
      for (const View& view : {outputs_[0], outputs_[1]}) {
        if (view.memory != outputs_[i].memory) continue;
        for (int64_t row = 0; row < view.rows; ++row) {
          for (int64_t col = 0; col < view.cols; ++col) {
            char* from = bytes.data() + (view.address(row, col) - view.memory->data());
            std::fill(from, from + size_of(view.dtype), char(0xff));
          }
        }
      }
      if (std::any_of(bytes.begin(), bytes.end(), [](char c) { return c != char(0xff); })) {
        fail(c_.name() + ": wrote between the rows of output " + std::to_string(i));
      }
    }
  }

  void check_values() { c_.dtype == DType::float64 ? check_values_in<long double>() : check_values_in<double>(); }

  // The arithmetic's sums x + bias are part of the definition: in float, or in double for float64.
  double add_bias(const View& x, int half, int64_t row, int64_t col) const {
    const double value = x.at(row, col), bias = bias_[half] ? bias_[half].at(0, col) : -0.0;
    return c_.dtype == DType::float64 ? value + bias : static_cast<float>(value) + static_cast<float>(bias);
  }

  template <class R>
  void check_values_in() {
    const Tolerance of_sum[2] = {Tolerance::of_sum(c_.dtype, bias_[0].dtype, c_.rows),
                                 Tolerance::of_sum(c_.dtype, bias_[1].dtype, c_.rows)};
    for (int64_t col = 0; col < c_.cols; ++col) {
      R sum[2] = {}, size[2] = {}, scale[2] = {};
      for (int64_t row = 0; row < c_.rows; ++row) {
        double z = add_bias(activated_, 0, row, col), linear = c_.gated() ? add_bias(linear_, 1, row, col) : 1;
        bool moves[2] = {true, true};  // not where it is clamped
        if (c_.clamped()) {
          moves[0] = !(z > kLimit), moves[1] = !(std::fabs(linear) > kLimit);
          z = moves[0] ? z : kLimit;
          linear = (moves[1] ? linear : std::copysign(kLimit, linear)) + kOffset;
          if (c_.dtype != DType::float64) linear = static_cast<float>(linear);
        }
        Truth<R> act = truth<R>(c_.clamped() ? "gelu_sigmoid" : Activations::names[c_.activation], z);
        // A square may exceed the arithmetic's range before it is multiplied by a small number.
        if (c_.dtype != DType::float64) act.value = static_cast<float>(act.value);
        if (!c_.backward) {
          const Tolerance tolerance =
              c_.gated() ? Tolerance::of_product(c_.dtype, z) : Tolerance::of_value(c_.dtype, z, bool(bias_[0]));
          expect(0, row, col, act.value * linear, tolerance, 0);
          continue;
        }
        const double grad = grad_out_.at(row, col);
        const Tolerance tolerance = Tolerance::of_product(c_.dtype, z);
        const R grads[2] = {moves[0] ? grad * (linear * act.slope) : 0, moves[1] ? grad * act.value : 0};
        const R scales[2] = {std::fabs(R(grad) * linear), 0};
        for (int half = 0; half < (c_.gated() ? 2 : 1); ++half) {
          expect(half, row, col, grads[half], tolerance, scales[half]);
          sum[half] += grads[half];
          size[half] += std::fabs(grads[half]);
          scale[half] += scales[half];
        }
      }
      for (int half = 0; half < 2; ++half) expect(2 + half, 0, col, sum[half], of_sum[half], scale[half], size[half]);
    }
  }

  void expect(int output, int64_t row, int64_t col, double want, const Tolerance& tolerance, double scale,
              double size = -1) const {
    const View& view = outputs_[output];
    if (!view) return;
    const double got = view.at(row, col);
    add_to_checksum(got);
    // The limit at -infinity is -0.
    const bool sign_is_right = c_.backward || want != 0 || got != 0 || std::signbit(want) == std::signbit(got);
    if (sign_is_right && tolerance.allows(view.dtype, got, want, size < 0 ? std::fabs(want) : size, scale)) return;
    char text[160];
    std::snprintf(text, sizeof(text), ": output %d at (%lld, %lld) is %.17g, should be %.17g", output,
                  static_cast<long long>(row), static_cast<long long>(col), got, want);
    fail(c_.name() + text);
  }

  Case c_;
  std::mt19937 random_;
  std::normal_distribution<double> normal_;
  View grad_out_, activated_, linear_, bias_[2];
  View outputs_[4];  // out, or two gradients; two bias gradients
  std::vector<View> inputs_;
  int allocations_ = 0;
};

constexpr Layout kLayouts[] = {
    {"contiguous", 0, 0, false, false},  {"padded by 16 bytes", 8, 0, false, false},
    {"padded by 3", 3, 0, false, false}, {"misaligned", 0, 1, false, false},
    {"packed", 0, 0, true, false},       {"repeated row", 0, 0, false, true},
};

struct Shape {
  int64_t rows, cols;
};
constexpr Shape kSmall[] = {{1, 1}, {1, 7}, {3, 1}, {2, 8}, {5, 24}, {37, 256}, {33, 130}, {3, 1234}, {300, 6}};
constexpr Shape kLarge[] = {{1, 70000}, {2, 70000}, {5000, 3}, {70000, 1}, {2049, 72}, {130, 2112}, {17, 3421}};

// Layouts, kinds of bias and sizes of devices take turns, so that every dtype and activation meets each of them.
void run_shapes(const Case& base, const std::vector<Shape>& shapes, int layouts,
                const std::vector<std::string>& orders) {
  int turn = base.activation + static_cast<int>(base.dtype);
  for (const Shape& shape : shapes) {
    for (int i = 0; i < layouts; ++i, ++turn) {
      Case c = base;
      c.rows = shape.rows;
      c.cols = shape.cols;
      c.layout = kLayouts[layouts == static_cast<int>(std::size(kLayouts)) ? i : turn % std::size(kLayouts)];
      c.bias = static_cast<BiasKind>(turn % (c.gated() ? 5 : 3));
      c.multiprocessors = turn % 2 == 0 ? 132 : 1 + turn % 5;
      Problem(c).run(orders);
    }
  }
}

// One matrix or bias that 16-byte words do not fit, among others that they do.
void run_misfits(Case c, const std::vector<std::string>& orders) {
  c.rows = 5;
  c.cols = 64;
  for (c.only = 0; c.only < 9; ++c.only) {
    for (const int layout : {2, 3}) {
      c.layout = kLayouts[layout];
      Problem(c).run(orders);
    }
  }
}

// Every choice of outputs.
void run_subsets(Case c, const std::vector<std::string>& orders) {
  c.rows = 41;
  c.cols = 48;
  c.multiprocessors = 2;
  for (const bool packed : {false, true}) {
    c.layout = kLayouts[packed ? 4 : 0];
    for (unsigned wanted = 1; wanted < 16; ++wanted) {
      if (!c.gated() && (wanted & 0b1010) != 0) continue;
      c.wanted = wanted;
      Problem(c).run(orders);
    }
  }
}

void run_operation(const Case& base, bool large, const std::vector<std::string>& orders) {
  run_shapes(base, {std::begin(kSmall), std::end(kSmall)}, std::size(kLayouts), orders);
  run_misfits(base, orders);
  if (base.backward) {
    run_subsets(base, orders);
  } else {
    Case special = base;
    special.rows = 9;
    special.cols = 96;
    special.layout = kLayouts[0];
    special.bias = BiasKind::none;
    special.special = true;
    Problem(special).run(orders);
  }
  if (!large) return;
  run_shapes(base, {std::begin(kLarge), std::end(kLarge)}, 1, orders);
  Case far = base;  // a thread's rows lie further apart than 32 bits count
  far.rows = 300;
  far.multiprocessors = 1;
  far.cols = 16;
  far.layout = kLayouts[0];
  far.far_stride = (int64_t{1} << 25) + 8;
  Problem(far).run(orders);
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> orders(arguments + std::min(count, 2), arguments + count);
  const std::string size = count > 1 ? arguments[1] : "";
  if (orders.empty() || (size != "small" && size != "large")) {
    std::fprintf(stderr, "usage: emulated_kernels {small|large} order...\n");
    return 2;
  }
  for (const DType dtype : {DType::float64, DType::float32, DType::float16, DType::bfloat16}) {
    for (int activation = 0; activation < Activations::size; ++activation) {
      for (const bool backward : {false, true}) {
        for (const Operation operation : {Operation::bias_act, Operation::act_mul, Operation::clamped_swiglu,
                                          Operation::interleaved_clamped_swiglu}) {
          Case c = {};
          c.operation = operation, c.backward = backward;
          c.dtype = dtype, c.activation = activation;
          if (!c.clamped() || Activations::names[activation] == std::string_view(Silu::name)) {
            run_operation(c, size == "large", orders);
          }
        }
      }
    }
  }
  std::printf("%lld problems, %zu orders, checksum %016llx\n", static_cast<long long>(cases_run), orders.size(),
              static_cast<unsigned long long>(checksum));
}
