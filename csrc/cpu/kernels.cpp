// The CPU entry points of the waist: split a problem into tiles, hand them to threads, add up the bias gradients.
// The split of a backward pass depends on the shape alone, never on the number of threads, and partial sums are added
// in one order: the bias gradient is the same to the bit for one thread and for many.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>

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
    constexpr int64_t kNarrowest = 512, kUnits = 64;
    int64_t tiles = divide_up(cols, kWidest);
    // Chunks of 16 to 128 rows, so that sums of a chunk stay short and partial sums few.
    chunk = std::clamp<int64_t>(rows * tiles / kUnits, 16, 128);
    // Where that leaves few chunks, more tiles.
    tiles = std::clamp(kUnits / 4 / chunks(), tiles, std::max(tiles, cols / kNarrowest));
    width = divide_up(divide_up(cols, tiles), 64) * 64;
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

// What is contiguous need not be taken row by row: rows of a few columns would be nothing but overhead. Without a bias
// all of it is one long row; with one, `size` rows at a time are, along which the bias repeats. The rows that are left
// over are one shorter row.
class Fold {
 public:
  template <class Problem, class... Matrices>
  Fold(const Problem& p, bool has_bias, const Matrices&... matrices)
      : contiguous_(((matrices.data == nullptr || p.rows == 1 || matrices.row_stride == p.cols) && ...)) {
    constexpr int64_t kWide = 1024;
    if (has_bias) {
      size = std::clamp<int64_t>(kWide / p.cols, 1, p.rows);
    } else if (contiguous_) {
      size = p.rows;
    }
  }

  // f(problem of wide rows) and, if rows are left over, f(problem of one row). What is not contiguous stays as it is.
  template <class Problem, class F, class... Matrices>
  void for_each_part(const Problem& p, F&& f, Matrices Problem::*... matrices) const {
    const auto part = [&](int64_t begin, int64_t rows, int64_t width) {
      Problem folded = p;
      folded.rows = rows, folded.cols = width * p.cols;
      ((folded.*matrices = {at_row(p.*matrices, begin, p.dtype), width * p.cols}), ...);
      f(folded);
    };
    if (size == 1 || !contiguous_) return f(p);
    const int64_t whole = p.rows / size, left = p.rows % size;
    part(0, whole, size);
    if (left != 0) part(p.rows - left, 1, left);
  }

  // f(chunk, column of the chunk's sums, tile) for every tile of a backward problem: of the folded one where it is
  // contiguous, else row by row, each row added where it has its place in a wide row: the layout decides no bit.
  template <class Problem, class F, class... Matrices>
  void for_each_backward_tile(const Problem& p, F&& f, Matrices Problem::*... matrices) const {
    if (size > 1 && !contiguous_) return for_each_narrow_row(p, f);
    int64_t chunks = 0;  // of the parts before
    const auto part = [&](const Problem& folded) {
      const Split split(folded.rows, folded.cols);
      split.parallel([&](int64_t chunk, const Tile& tile) { f(folded, chunks + chunk, 0, tile); });
      chunks += split.chunks();
    };
    for_each_part(p, part, matrices...);
  }

  int64_t size = 1;

 private:
  template <class Problem, class F>
  void for_each_narrow_row(const Problem& p, F&& f) const {
    const Split split(p.rows / size, size * p.cols);
    const int64_t whole = p.rows / size * size, chunk_rows = split.chunk * size, chunks = split.chunks();
    const int64_t grain = std::max<int64_t>(1, kGrain / (chunk_rows * p.cols));
    at::parallel_for(0, chunks + (whole < p.rows), grain, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = chunk < chunks ? chunk * chunk_rows : whole;
        const int64_t last = chunk < chunks ? std::min(first + chunk_rows, whole) : p.rows;
        for (int64_t row = first; row < last; ++row) f(p, chunk, row % size * p.cols, Tile{row, row + 1, 0, p.cols});
      }
    });
  }

  template <class Matrix>
  static auto at_row(const Matrix& m, int64_t row, DType dtype) -> decltype(m.data) {
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(m.data)>>, const char, char>;
    return m.data == nullptr ? nullptr : static_cast<Byte*>(m.data) + row * m.row_stride * size_of(dtype);
  }

  bool contiguous_;
};

// Memory for values of an arithmetic type, in whole cache lines: from within a line, every vector of 64 bytes that is
// loaded or stored would touch two.
class Scratch {
 public:
  void allocate(int64_t bytes) { lines_.reset(new Line[divide_up(bytes, sizeof(Line))]); }
  char* data() const { return reinterpret_cast<char*>(lines_.get()); }

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  std::unique_ptr<Line[]> lines_;
};

// The bias in the arithmetic type, `repeat` times: as it is where that is what it is, else a copy.
class WideBias {
 public:
  WideBias(const ConstVector& bias, DType dtype, int64_t cols, int64_t repeat) : data_(bias.data) {
    const DType arithmetic = arithmetic_of(dtype);
    if (bias.data == nullptr || (bias.dtype == arithmetic && repeat == 1)) return;
    const int64_t bytes = cols * size_of(arithmetic);
    copy_.allocate(repeat * bytes);
    chosen_set().widen(arithmetic, bias.dtype, bias.data, copy_.data(), cols);
    for (int64_t i = 1; i < repeat; ++i) std::memcpy(copy_.data() + i * bytes, copy_.data(), bytes);
    data_ = copy_.data();
  }

  const void* data() const { return data_; }

 private:
  const void* data_;
  Scratch copy_;
};

// One row of partial sums per chunk of folded rows, then their sum in that order.
class ColumnSums {
 public:
  ColumnSums(const Vector& total, DType dtype, int64_t rows, int64_t cols, const Fold& fold)
      : total_(total),
        arithmetic_(arithmetic_of(dtype)),
        cols_(cols),
        fold_(fold.size),
        chunks_(Split(rows / fold.size, cols * fold.size).chunks() + (rows % fold.size != 0)) {
    if (total.data == nullptr) return;
    const int64_t bytes = chunks_ * fold_ * cols_ * size_of(arithmetic_);
    partial_.allocate(bytes);
    std::memset(partial_.data(), 0, bytes);
  }

  // sums of a chunk from one of its columns on, zero at first; null where they are not wanted
  void* at(int64_t chunk, int64_t col) const {
    return total_.data == nullptr ? nullptr : partial_.data() + (chunk * fold_ * cols_ + col) * size_of(arithmetic_);
  }

  void finish() const {
    if (total_.data == nullptr) return;
    const int64_t rows = chunks_ * fold_;
    ::at::parallel_for(0, cols_, std::max<int64_t>(64, kGrain / rows), [&](int64_t begin, int64_t end) {
      chosen_set().add_rows(arithmetic_, partial_.data() + begin * size_of(arithmetic_), rows, cols_, total_.dtype,
                            static_cast<char*>(total_.data) + begin * size_of(total_.dtype), end - begin);
    });
  }

 private:
  Vector total_;
  DType arithmetic_;
  int64_t cols_, fold_, chunks_;
  Scratch partial_;
};

}  // namespace

void bias_act_forward(const BiasActForward& problem) {
  using Problem = BiasActForward;
  const InstructionSet& set = chosen_set();
  const Fold fold(problem, problem.bias.data != nullptr, problem.x, problem.out);
  const WideBias bias(problem.bias, problem.dtype, problem.cols, fold.size);
  const LargeOutput large_out(problem.out, problem.dtype, problem.rows, problem.cols, problem.huge_pages);
  const auto run = [&](const Problem& p) {
    parallel_tiles(p.rows, p.cols, [&](const Tile& tile) { set.bias_act_forward(p, bias.data(), tile); });
  };
  fold.for_each_part(problem, run, &Problem::x, &Problem::out);
}

void bias_act_backward(const BiasActBackward& problem) {
  using Problem = BiasActBackward;
  const InstructionSet& set = chosen_set();
  const Fold fold(problem, problem.bias.data != nullptr, problem.x, problem.grad_out, problem.grad_x);
  const WideBias bias(problem.bias, problem.dtype, problem.cols, fold.size);
  const ColumnSums sums(problem.grad_bias, problem.dtype, problem.rows, problem.cols, fold);
  const LargeOutput large_grad_x(problem.grad_x, problem.dtype, problem.rows, problem.cols, problem.huge_pages);
  const auto run = [&](const Problem& p, int64_t chunk, int64_t col, const Tile& tile) {
    set.bias_act_backward(p, bias.data(), sums.at(chunk, col), tile);
  };
  fold.for_each_backward_tile(problem, run, &Problem::grad_out, &Problem::x, &Problem::grad_x);
  sums.finish();
}

void gated_act_forward(const GatedActForward& problem) {
  using Problem = GatedActForward;
  const InstructionSet& set = chosen_set();
  const bool has_bias = problem.activated_bias.data != nullptr || problem.linear_bias.data != nullptr;
  const Fold fold(problem, has_bias, problem.activated, problem.linear, problem.out);
  const WideBias activated_bias(problem.activated_bias, problem.dtype, problem.cols, fold.size);
  const WideBias linear_bias(problem.linear_bias, problem.dtype, problem.cols, fold.size);
  const LargeOutput large_out(problem.out, problem.dtype, problem.rows, problem.cols, problem.huge_pages);
  const auto run = [&](const Problem& p) {
    parallel_tiles(p.rows, p.cols, [&](const Tile& tile) {
      set.gated_act_forward(p, activated_bias.data(), linear_bias.data(), tile);
    });
  };
  fold.for_each_part(problem, run, &Problem::activated, &Problem::linear, &Problem::out);
}

void gated_act_backward(const GatedActBackward& problem) {
  using Problem = GatedActBackward;
  const InstructionSet& set = chosen_set();
  const bool has_bias = problem.activated_bias.data != nullptr || problem.linear_bias.data != nullptr;
  const Fold fold(problem, has_bias, problem.activated, problem.linear, problem.grad_out, problem.grad_activated,
                  problem.grad_linear);
  const WideBias activated_bias(problem.activated_bias, problem.dtype, problem.cols, fold.size);
  const WideBias linear_bias(problem.linear_bias, problem.dtype, problem.cols, fold.size);
  const ColumnSums activated_sums(problem.grad_activated_bias, problem.dtype, problem.rows, problem.cols, fold);
  const ColumnSums linear_sums(problem.grad_linear_bias, problem.dtype, problem.rows, problem.cols, fold);
  const LargeOutput large_grad_activated(problem.grad_activated, problem.dtype, problem.rows, problem.cols,
                                         problem.huge_pages);
  const LargeOutput large_grad_linear(problem.grad_linear, problem.dtype, problem.rows, problem.cols,
                                      problem.huge_pages);
  const auto run = [&](const Problem& p, int64_t chunk, int64_t col, const Tile& tile) {
    set.gated_act_backward(p, activated_bias.data(), linear_bias.data(), activated_sums.at(chunk, col),
                           linear_sums.at(chunk, col), tile);
  };
  fold.for_each_backward_tile(problem, run, &Problem::grad_out, &Problem::activated, &Problem::linear,
                              &Problem::grad_activated, &Problem::grad_linear);
  activated_sums.finish();
  linear_sums.finish();
}

}  // namespace gelu_ext::cpu
