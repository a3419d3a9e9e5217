// The CPU entry points of the waist: split a problem into tiles, hand them to threads, add up the bias gradients.
// The split of a backward pass depends on the shape alone, never on the number of threads, and partial sums are added
// in one order: the bias gradient is the same to the bit for one thread and for many.
#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>

#include "instruction_set.h"
#include "memory.h"

namespace gelu_ext::cpu {
namespace {

// Elements below which a second thread costs more than it brings.
constexpr int64_t kGrain = 16 * 1024;

DType arithmetic_of(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// [begin, end) units of rows x column tiles, row-major, as few tiles as possible.
template <class F>
void for_each_tile(int64_t begin, int64_t end, int64_t cols, int64_t width, F&& f) {
  const int64_t tiles = divide_up(cols, width);
  if (tiles == 1) return f(Tile{begin, end, 0, cols});
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t row = unit / tiles, col = unit % tiles * width;
    f(Tile{row, row + 1, col, std::min(col + width, cols)});
  }
}

// Elementwise work: rows are dealt to threads, and pieces of rows where rows are long.
template <class F>
void parallel_tiles(int64_t rows, int64_t cols, F&& f) {
  constexpr int64_t kWidth = 8192;
  if (rows * cols <= kGrain) return f(Tile{0, rows, 0, cols});
  const int64_t units = rows * divide_up(cols, kWidth);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::min(cols, kWidth));
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) { for_each_tile(begin, end, cols, kWidth, f); });
}

// The fixed split of a backward pass: chunks of rows by tiles of columns.
struct Split {
  int64_t rows, cols, chunk, width;

  Split(int64_t rows, int64_t cols) : rows(rows), cols(cols) {
    constexpr int64_t kWidest = 4096;  // columns whose sums stay in the first-level cache
    width = divide_up(divide_up(cols, divide_up(cols, kWidest)), 64) * 64;
    // About 64 units of work; chunks of 16 to 128 rows, so that sums of a chunk stay short and partial sums few.
    chunk = std::clamp<int64_t>(rows * divide_up(cols, width) / 64, 16, 128);
  }

  int64_t chunks() const { return divide_up(rows, chunk); }

  template <class F>
  void parallel(F&& f) const {
    const int64_t tiles = divide_up(cols, width);
    const auto run = [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit / tiles * chunk, col = unit % tiles * width;
        f(unit / tiles, Tile{row, std::min(row + chunk, rows), col, std::min(col + width, cols)});
      }
    };
    const int64_t units = chunks() * tiles;
    if (rows * cols <= kGrain) return run(0, units);
    at::parallel_for(0, units, std::max<int64_t>(1, kGrain / (chunk * std::min(width, cols))), run);
  }
};

// The bias in the arithmetic type: as it is where it has that type, else a copy.
class WideBias {
 public:
  WideBias(const ConstVector& bias, DType dtype, int64_t cols) : data_(bias.data) {
    const DType arithmetic = arithmetic_of(dtype);
    if (bias.data == nullptr || bias.dtype == arithmetic) return;
    copy_.reset(new char[cols * size_of(arithmetic)]);
    chosen_set().widen(arithmetic, bias.dtype, bias.data, copy_.get(), cols);
    data_ = copy_.get();
  }

  const void* data() const { return data_; }

 private:
  const void* data_;
  std::unique_ptr<char[]> copy_;
};

// One row of partial sums per chunk, then their sum in the order of the chunks.
class ColumnSums {
 public:
  ColumnSums(const Vector& total, DType dtype, const Split& split) : total_(total), split_(split) {
    arithmetic_ = arithmetic_of(dtype);
    if (total.data != nullptr) partial_.reset(new char[split.chunks() * split.cols * size_of(arithmetic_)]());
  }

  // [cols] sums of a chunk, zero at first; null where they are not wanted
  void* of_chunk(int64_t chunk) const {
    return partial_ == nullptr ? nullptr : partial_.get() + chunk * split_.cols * size_of(arithmetic_);
  }

  void finish() const {
    if (total_.data == nullptr) return;
    with_dtype(arithmetic_, [&](auto arithmetic) {
      if constexpr (arithmetic() == DType::float64 || arithmetic() == DType::float32) {
        using T = typename PrecisionOf<arithmetic()>::type::type;
        add_chunks(reinterpret_cast<const T*>(partial_.get()));
      }
    });
  }

 private:
  template <class T>
  void add_chunks(const T* partial) const {
    const int64_t chunks = split_.chunks(), cols = split_.cols;
    at::parallel_for(0, cols, std::max<int64_t>(64, kGrain / chunks), [&](int64_t begin, int64_t end) {
      constexpr int64_t kWidth = 256;
      double sum[kWidth];
      for (int64_t col = begin; col < end; col += kWidth) {
        const int64_t n = std::min(kWidth, end - col);
        std::fill_n(sum, n, 0.0);
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          for (int64_t i = 0; i < n; ++i) sum[i] += static_cast<double>(partial[chunk * cols + col + i]);
        }
        chosen_set().narrow(total_.dtype, sum, static_cast<char*>(total_.data) + col * size_of(total_.dtype), n);
      }
    });
  }

  Vector total_;
  Split split_;
  DType arithmetic_;
  std::unique_ptr<char[]> partial_;
};

// Without biases, contiguous matrices are one long row: rows of a few columns would be nothing but overhead.
template <class Problem, class... Matrices>
Problem flattened(Problem p, bool has_bias, const Matrices&... matrices) {
  const bool contiguous = ((matrices.data == nullptr || p.rows == 1 || matrices.row_stride == p.cols) && ...);
  if (!has_bias && contiguous) {
    p.cols *= p.rows;
    p.rows = 1;
  }
  return p;
}

}  // namespace

void bias_act_forward(const BiasActForward& problem) {
  const BiasActForward p = flattened(problem, problem.bias.data != nullptr, problem.x, problem.out);
  const InstructionSet& set = chosen_set();
  const WideBias bias(p.bias, p.dtype, p.cols);
  expect_large(p.out, p.dtype, p.rows, p.cols);
  parallel_tiles(p.rows, p.cols, [&](const Tile& tile) { set.bias_act_forward(p, bias.data(), tile); });
}

void bias_act_backward(const BiasActBackward& problem) {
  const BiasActBackward p =
      flattened(problem, problem.bias.data != nullptr, problem.x, problem.grad_out, problem.grad_x);
  const InstructionSet& set = chosen_set();
  const Split split(p.rows, p.cols);
  const WideBias bias(p.bias, p.dtype, p.cols);
  const ColumnSums sums(p.grad_bias, p.dtype, split);
  expect_large(p.grad_x, p.dtype, p.rows, p.cols);
  split.parallel(
      [&](int64_t chunk, const Tile& tile) { set.bias_act_backward(p, bias.data(), sums.of_chunk(chunk), tile); });
  sums.finish();
}

void gated_act_forward(const GatedActForward& problem) {
  const GatedActForward p =
      flattened(problem, problem.activated_bias.data != nullptr || problem.linear_bias.data != nullptr,
                problem.activated, problem.linear, problem.out);
  const InstructionSet& set = chosen_set();
  const WideBias activated_bias(p.activated_bias, p.dtype, p.cols), linear_bias(p.linear_bias, p.dtype, p.cols);
  expect_large(p.out, p.dtype, p.rows, p.cols);
  parallel_tiles(p.rows, p.cols,
                 [&](const Tile& tile) { set.gated_act_forward(p, activated_bias.data(), linear_bias.data(), tile); });
}

void gated_act_backward(const GatedActBackward& problem) {
  const GatedActBackward p =
      flattened(problem, problem.activated_bias.data != nullptr || problem.linear_bias.data != nullptr,
                problem.activated, problem.linear, problem.grad_out, problem.grad_activated, problem.grad_linear);
  const InstructionSet& set = chosen_set();
  const Split split(p.rows, p.cols);
  const WideBias activated_bias(p.activated_bias, p.dtype, p.cols), linear_bias(p.linear_bias, p.dtype, p.cols);
  const ColumnSums activated_sums(p.grad_activated_bias, p.dtype, split);
  const ColumnSums linear_sums(p.grad_linear_bias, p.dtype, split);
  expect_large(p.grad_activated, p.dtype, p.rows, p.cols);
  expect_large(p.grad_linear, p.dtype, p.rows, p.cols);
  split.parallel([&](int64_t chunk, const Tile& tile) {
    set.gated_act_backward(p, activated_bias.data(), linear_bias.data(), activated_sums.of_chunk(chunk),
                           linear_sums.of_chunk(chunk), tile);
  });
  activated_sums.finish();
  linear_sums.finish();
}

}  // namespace gelu_ext::cpu
