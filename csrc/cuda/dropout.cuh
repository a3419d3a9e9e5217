// Dropout of a thread's elements of a row: the blocks of random numbers are computed where they are needed, of vectors
// one for 16 bytes.
#pragma once

#include "rows.cuh"

namespace gelu_ext::cuda {

// Calls f with a std::bool_constant: whether the kernel has dropout. Those of vectors come with and without, as it
// needs registers; the others, which are rare, have it and ask.
template <class Op, class Columns, class F>
void with_dropout(const Problem& p, F&& f) {
  if constexpr (!Op::drops) {
    f(std::false_type());
  } else if constexpr (std::is_same_v<Columns, VectorColumns<Columns::dtype>>) {
    p.dropout.drops() ? f(std::true_type()) : f(std::false_type());
  } else {
    f(std::true_type());
  }
}

// What the kernels take.
struct DropoutArguments {
  Dropout of;
  float scale;
  int64_t cols, row_step;

  DropoutArguments(const Problem& p, const LaunchShape& shape)
      : of(p.dropout), scale(static_cast<float>(of.scale)), cols(p.cols), row_step(shape.row_step()) {}
};

template <class Columns>
class DropoutRows {
 public:
  GELU_EXT_DEVICE DropoutRows(const Columns& columns, const DropoutArguments& arguments)
      : columns_(columns), arguments_(arguments), key_(0), counter_(0) {
    if (!arguments.of.drops()) return;
    key_ = static_cast<uint64_t>(load_scalar(arguments.of.philox));
    counter_ = static_cast<uint64_t>(load_scalar(arguments.of.philox + 1));
  }

  GELU_EXT_DEVICE void apply(int pass, typename Columns::Values& values) const {
    const Dropout& of = arguments_.of;
    const int64_t row = of.first + (first_row() + pass * arguments_.row_step) * arguments_.cols;
    if constexpr (std::is_same_v<Columns, VectorColumns<Columns::dtype>>) {
      const auto first = static_cast<uint64_t>(row + columns_.first);  // all are of one block
      const PhiloxBlock<uint64_t> block = philox(counter_ + first / Dropout::kBlock, key_);
      const bool upper = Columns::count < Dropout::kBlock && first % Dropout::kBlock != 0;
#pragma unroll
      for (int k = 0; k < Columns::count; ++k) {
        const uint32_t number_k = upper ? number(block, k + Columns::count) : number(block, k);
        values[k] *= number_k <= of.last_kept ? scale() : opmath_t(0);
      }
    } else if (of.drops()) {
      uint32_t kept = 0;
      PhiloxBlock<uint64_t> block = {};
#pragma unroll 1
      for (int k = 0; k < Columns::count; ++k) {
        const auto at = static_cast<uint64_t>(row + columns_.column(k));
        if (k == 0 || at % Dropout::kBlock == 0 || columns_.begins_piece(k)) {
          block = philox(counter_ + at / Dropout::kBlock, key_);
        }
        kept |= static_cast<uint32_t>(number_at(block, at) <= of.last_kept) << k;
      }
#pragma unroll
      for (int k = 0; k < Columns::count; ++k) values[k] *= (kept >> k & 1) != 0 ? scale() : opmath_t(0);
    }
  }

 private:
  using opmath_t = typename Columns::opmath_t;

  GELU_EXT_DEVICE opmath_t scale() const {
    if constexpr (std::is_same_v<opmath_t, double>) {
      return arguments_.of.scale;
    } else {
      return arguments_.scale;
    }
  }
  // Without a computed index, which would put the block into local memory.
  static GELU_EXT_DEVICE uint32_t number_at(const PhiloxBlock<uint64_t>& block, uint64_t at) {
    const uint64_t lower = at & 2 ? block.word[1] : block.word[0], upper = at & 2 ? block.word[3] : block.word[2];
    return static_cast<uint32_t>(at & 4 ? upper : lower) >> (at % 2 * 16) & 0xffffu;
  }

  const Columns& columns_;
  const DropoutArguments& arguments_;
  uint64_t key_, counter_;
};

struct NoDropout {
  template <class... Arguments>
  GELU_EXT_DEVICE NoDropout(const Arguments&...) {}
  template <class Values>
  GELU_EXT_DEVICE void apply(int, Values&) const {}
};

}  // namespace gelu_ext::cuda
