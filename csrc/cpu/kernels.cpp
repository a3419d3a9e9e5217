// The CPU entry points of the waist: split a problem into tiles, hand them to threads, add up the bias gradients.
// The split of a backward pass depends on the shape alone, never on the number of threads, and partial sums are added
// in one order: the bias gradient is the same to the bit for one thread and for many.
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "huge_pages.h"
#include "instruction_set.h"

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

// What is contiguous need not be taken row by row: rows of a few columns would be nothing but overhead. Without vectors
// all of it is one long row; with some, `size` rows at a time are, along which the vectors repeat. The rows that are
// left over are one shorter row.
template <class AnyProblem>
class Fold {
 public:
  explicit Fold(const AnyProblem& problem) : p_(problem), contiguous_(is_contiguous(problem)) {
    constexpr int64_t kWide = 1024;
    if (p_.has_vectors()) {
      size = std::clamp<int64_t>(kWide / p_.cols, 1, p_.rows);
    } else if (contiguous_) {
      size = p_.rows;
    }
  }

  // f(problem of wide rows) and, if rows are left over, f(problem of one row). What is not contiguous stays as it is.
  template <class F>
  void for_each_part(F&& f) const {
    const auto part = [&](int64_t begin, int64_t rows, int64_t width) {
      f(recut(p_, begin * p_.cols, rows, width * p_.cols));
    };
    if (size == 1 || !contiguous_) return f(p_);
    const int64_t whole = p_.rows / size, left = p_.rows % size;
    part(0, whole, size);
    if (left != 0) part(p_.rows - left, 1, left);
  }

  // f(chunk, column of the chunk's sums, tile) for every tile of a backward problem: of the folded one where it is
  // contiguous, else row by row, each row added where it has its place in a wide row: the layout decides no bit.
  template <class F>
  void for_each_backward_tile(F&& f) const {
    if (size > 1 && !contiguous_) return for_each_narrow_row(f);
    int64_t chunks = 0;  // of the parts before
    for_each_part([&](const AnyProblem& folded) {
      const Split split(folded.rows, folded.cols);
      split.parallel([&](int64_t chunk, const Tile& tile) { f(folded, chunks + chunk, 0, tile); });
      chunks += split.chunks();
    });
  }

  int64_t size = 1;

 private:
  template <class F>
  void for_each_narrow_row(F&& f) const {
    const Split split(p_.rows / size, size * p_.cols);
    const int64_t whole = p_.rows / size * size, chunk_rows = split.chunk * size, chunks = split.chunks();
    const int64_t grain = std::max<int64_t>(1, kGrain / (chunk_rows * p_.cols));
    at::parallel_for(0, chunks + (whole < p_.rows), grain, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = chunk < chunks ? chunk * chunk_rows : whole;
        const int64_t last = chunk < chunks ? std::min(first + chunk_rows, whole) : p_.rows;
        for (int64_t row = first; row < last; ++row) f(p_, chunk, row % size * p_.cols, Tile{row, row + 1, 0, p_.cols});
      }
    });
  }

  AnyProblem p_;
  bool contiguous_;
};

// Memory for values of an arithmetic type, in whole cache lines: from within a line, every vector of 64 bytes that is
// loaded or stored would touch two.
class Scratch {
 public:
  char* allocate(int64_t bytes) {
    lines_.reset(new Line[divide_up(bytes, sizeof(Line))]);
    return data();
  }
  char* data() const { return reinterpret_cast<char*>(lines_.get()); }

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  std::unique_ptr<Line[]> lines_;
};

// The vectors in the arithmetic type, `repeat` times: as they are where that is what they are, else copies.
class WideVectors {
 public:
  WideVectors(const Problem& p, int64_t repeat) {
    const DType arithmetic = arithmetic_of(p.dtype);
    const int64_t bytes = p.cols * static_cast<int64_t>(size_of(arithmetic));
    for (int j = 0; j < p.vectors(); ++j) {
      const ConstVector& vector = p.vector[j];
      data_[j] = vector.data;
      if (vector.data == nullptr || (vector.dtype == arithmetic && vector.step == 1 && repeat == 1)) continue;
      char* copy = copies_[j].allocate(repeat * bytes);
      chosen_set().widen(arithmetic, vector, copy, p.cols);
      for (int64_t i = 1; i < repeat; ++i) std::memcpy(copy + i * bytes, copy, bytes);
      data_[j] = copy;
    }
  }

  const void* const* data() const { return data_; }

 private:
  const void* data_[Operations::most_vectors] = {};
  Scratch copies_[Operations::most_vectors];
};

// For each vector's gradient one row of partial sums per chunk of folded rows, then their sum in that order.
class ColumnSums {
 public:
  ColumnSums(const Backward& p, int64_t fold)
      : p_(p),
        arithmetic_(arithmetic_of(p.dtype)),
        fold_(fold),
        rows_(fold * (Split(p.rows / fold, p.cols * fold).chunks() + (p.rows % fold != 0))) {
    const int64_t bytes = rows_ * p.cols * static_cast<int64_t>(size_of(arithmetic_));
    for (int j = 0; j < p.vectors(); ++j) {
      if (p.grad_vector[j].data != nullptr) std::memset(partial_[j].allocate(bytes), 0, bytes);
    }
  }

  // sums of a chunk from one of its columns on, zero at first; null where they are not wanted
  std::array<void*, Operations::most_vectors> at(int64_t chunk, int64_t col) const {
    std::array<void*, Operations::most_vectors> sums = {};
    for (int j = 0; j < p_.vectors(); ++j) {
      if (char* data = partial_[j].data()) sums[j] = data + (chunk * fold_ * p_.cols + col) * size_of(arithmetic_);
    }
    return sums;
  }

  void finish() const {
    for (int j = 0; j < p_.vectors(); ++j) {
      const Vector& total = p_.grad_vector[j];
      if (total.data == nullptr) continue;
      ::at::parallel_for(0, p_.cols, std::max<int64_t>(64, kGrain / rows_), [&](int64_t begin, int64_t end) {
        chosen_set().add_rows(arithmetic_, partial_[j].data(), rows_, p_.cols, total, begin, end - begin);
      });
    }
  }

 private:
  const Backward& p_;
  DType arithmetic_;
  int64_t fold_, rows_;
  Scratch partial_[Operations::most_vectors];
};

}  // namespace

void forward(const Forward& problem) {
  const InstructionSet& set = chosen_set();
  const Fold fold(problem);
  const WideVectors vectors(problem, fold.size);
  HugePages pages(problem);
  pages.advise(problem.out);
  fold.for_each_part([&](const Forward& p) {
    parallel_tiles(p.rows, p.cols, [&](const Tile& tile) { set.forward(p, vectors.data(), tile); });
  });
}

void backward(const Backward& problem) {
  const InstructionSet& set = chosen_set();
  const Fold fold(problem);
  const WideVectors vectors(problem, fold.size);
  const ColumnSums sums(problem, fold.size);
  HugePages pages(problem);
  for (const Matrix& grad : problem.grad) pages.advise(grad);
  fold.for_each_backward_tile([&](const Backward& p, int64_t chunk, int64_t col, const Tile& tile) {
    set.backward(p, vectors.data(), sums.at(chunk, col).data(), tile);
  });
  sums.finish();
}

}  // namespace gelu_ext::cpu
