// Memory access: which columns of a row a thread has, and how it loads and stores them.
// VectorColumns: neighbouring columns, 16 bytes. PieceColumns: as many columns in pieces of 8, 4 or 2 bytes, which lie
// interleaved among the lanes of the block, for widths and pointers that allow no more. Tiles and launch shapes are the
// same.
#pragma once

#include "storage.cuh"

namespace gelu_ext::cuda {

// What both ways share.
template <DType D>
struct ColumnsOf {
  static constexpr DType dtype = D;
  static constexpr int count = elements_per_thread(D);
  using precision = typename PrecisionOf<D>::type;
  using scalar_t = typename ScalarOf<D>::type;
  using opmath_t = typename precision::type;

  using Loaded = Words;

  // This thread's elements of one row, to compute with.
  struct Values {
    opmath_t value[count];

    GELU_EXT_DEVICE opmath_t& operator[](int k) { return value[k]; }
    GELU_EXT_DEVICE const opmath_t& operator[](int k) const { return value[k]; }
  };
  static GELU_EXT_DEVICE Values values(const Loaded& loaded) {
    Values values;
    unpack(loaded, values.value, ScalarOf<D>{});
    return values;
  }
};

template <DType D>
struct VectorColumns : ColumnsOf<D> {
  static constexpr Tuning tuned(Tuning tuning) { return tuning; }
  using Base = ColumnsOf<D>;
  using Base::count;
  using typename Base::scalar_t, typename Base::Values, typename Base::Loaded;

  int64_t first;
  bool any;  // else this thread lies beyond the last column

  GELU_EXT_DEVICE VectorColumns(int64_t cols, int)
      : first((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * count), any(first < cols) {}

  GELU_EXT_DEVICE bool has(int) const { return any; }
  static GELU_EXT_DEVICE bool fits(const void* data) { return reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0; }
  GELU_EXT_DEVICE int64_t column(int k) const { return first + k; }

  // Bytes from a thread's first row to the one of the given pass: a single instruction, unlike 64-bit arithmetic.
  template <class Data>
  static GELU_EXT_DEVICE int64_t offset(int pass, const Rows<Data>& rows) {
    return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(pass) * kVectorBytes) * rows.step_vectors);
  }

  // `at` is the element at column `first`.
  GELU_EXT_DEVICE Loaded load(const scalar_t* at) const { return load_words(at); }
  GELU_EXT_DEVICE void store(scalar_t* at, const Values& values) const {
    store_words(at, pack(values.value, ScalarOf<D>{}));
  }

  // Where element (k, lane) lies in the block's tile.
  static GELU_EXT_DEVICE int lane_of(int in_tile) { return in_tile / count; }
  static GELU_EXT_DEVICE int element_of(int in_tile) { return in_tile % count; }
};

template <DType D>
struct PieceColumns : ColumnsOf<D> {
  // The addresses of the pieces need registers.
  static constexpr Tuning tuned(Tuning) { return {1, 2}; }
  using Base = ColumnsOf<D>;
  using Base::count;
  using typename Base::scalar_t, typename Base::Values, typename Base::Loaded;

  bool aligned;   // else two elements that are a pair cannot be accessed together
  int piece;      // its elements, a power of two
  int64_t first;  // of the first piece
  int distance;   // in elements, from piece to piece
  int pieces;     // that lie within the row
  bool any;

  GELU_EXT_DEVICE PieceColumns(int64_t cols, int aligned_piece)
      : aligned(aligned_piece != 0),
        piece(aligned ? aligned_piece : 1),
        first(static_cast<int64_t>(blockIdx.x) * (static_cast<int64_t>(blockDim.x) * count) + threadIdx.x * piece),
        distance(static_cast<int>(blockDim.x) * piece),
        pieces(0),
        any(first < cols) {
    for (int i = 0; i < count / piece; ++i) pieces += first + i * distance < cols;
  }

  GELU_EXT_DEVICE bool has(int k) const { return k / piece < pieces; }
  GELU_EXT_DEVICE bool fits(const void* data) const {
    return reinterpret_cast<uintptr_t>(data) % (piece * sizeof(scalar_t)) == 0;
  }
  GELU_EXT_DEVICE int64_t column(int k) const { return first + k / piece * distance + k % piece; }

  template <class Data>
  static GELU_EXT_DEVICE int64_t offset(int pass, const Rows<Data>& rows) {
    return pass * rows.step;
  }

  // The branches are the same for all threads of a grid.
  GELU_EXT_DEVICE Loaded load(const scalar_t* at) const {
    Loaded loaded = {};
    if (piece * sizeof(scalar_t) == 8) {
      load_pieces<uint64_t>(at, loaded);
    } else if (piece * sizeof(scalar_t) == 4) {
      load_pieces<uint32_t>(at, loaded);
    } else {
      load_pieces<uint16_t>(at, loaded);
    }
    return loaded;
  }
  GELU_EXT_DEVICE void store(scalar_t* at, const Values& values) const {
    const Words words = pack(values.value, ScalarOf<D>{});
    if (piece * sizeof(scalar_t) == 8) {
      store_pieces<uint64_t>(at, words);
    } else if (piece * sizeof(scalar_t) == 4) {
      store_pieces<uint32_t>(at, words);
    } else {
      store_pieces<uint16_t>(at, words);
    }
  }

  GELU_EXT_DEVICE int lane_of(int in_tile) const { return in_tile % distance / piece; }
  GELU_EXT_DEVICE int element_of(int in_tile) const { return in_tile / distance * piece + in_tile % piece; }

  // Of a matrix with two interleaved operands, the first or second half of the pairs that lie in this thread's columns:
  // `count` elements. `at` is the element at column `first`.
  template <int half>
  GELU_EXT_DEVICE Loaded load_pairs(const scalar_t* at) const {
    Loaded loaded = {};
    if (!aligned) {
      for_each_of_pairs<half>([&](int i, int offset) { set_piece(loaded, i, load_piece<Unsigned>(at + offset)); });
    } else if (piece * sizeof(scalar_t) == 8) {
      if (half < pieces) loaded = load_words(at + 2 * half * distance);
    } else if (piece * sizeof(scalar_t) == 4) {
      load_pieces<uint64_t, 2, half>(at, loaded);
    } else {
      load_pieces<uint32_t, 2, half>(at, loaded);
    }
    return loaded;
  }
  template <int half>
  GELU_EXT_DEVICE void store_pairs(scalar_t* at, const Values& values) const {
    const Words words = pack(values.value, ScalarOf<D>{});
    if (!aligned) {
      for_each_of_pairs<half>([&](int i, int offset) { store_piece(at + offset, get_piece<Unsigned>(words, i)); });
    } else if (piece * sizeof(scalar_t) == 8) {
      if (half < pieces) store_words(at + 2 * half * distance, words);
    } else if (piece * sizeof(scalar_t) == 4) {
      store_pieces<uint64_t, 2, half>(at, words);
    } else {
      store_pieces<uint32_t, 2, half>(at, words);
    }
  }

 private:
  using Unsigned = std::conditional_t<sizeof(scalar_t) == 8, uint64_t,
                                      std::conditional_t<sizeof(scalar_t) == 4, uint32_t, uint16_t>>;

  // f(index, offset) for every element of half of the pairs
  template <int half, class F>
  GELU_EXT_DEVICE void for_each_of_pairs(const F& f) const {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int pair = (half * count + i) / 2;
      if (pair < pieces) f(i, 2 * pair * distance + i % 2);
    }
  }

  // Sixteen bytes: the first pieces, or the second sixteen. A column has `step` elements.
  template <class Piece, int step = 1, int sixteen = 0>
  GELU_EXT_DEVICE void load_pieces(const scalar_t* at, Words& words) const {
    constexpr int kPieces = kVectorBytes / static_cast<int>(sizeof(Piece)), kFirst = sixteen * kPieces;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (kFirst + i < pieces) set_piece(words, i, load_piece<Piece>(at + step * (kFirst + i) * distance));
    }
  }
  template <class Piece, int step = 1, int sixteen = 0>
  GELU_EXT_DEVICE void store_pieces(scalar_t* at, const Words& words) const {
    constexpr int kPieces = kVectorBytes / static_cast<int>(sizeof(Piece)), kFirst = sixteen * kPieces;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (kFirst + i < pieces) store_piece(at + step * (kFirst + i) * distance, get_piece<Piece>(words, i));
    }
  }
};

template <class T>
struct TypeTag {
  using type = T;
};

// How a thread finds an operand's elements of a row: in a matrix of its own ...
struct Alone {
  static constexpr int step = 1;

  template <class Columns, class At>
  static GELU_EXT_DEVICE auto load(const Columns& columns, At at) {
    return columns.load(at);
  }
  template <class Columns, class At>
  static GELU_EXT_DEVICE void store(const Columns& columns, At at, const typename Columns::Values& values) {
    columns.store(at, values);
  }
};
// ... or as the pairs of two operands, of which each loads and stores half.
template <int half>
struct InPairs {
  static constexpr int step = 2;

  template <class Columns, class At>
  static GELU_EXT_DEVICE auto load(const Columns& columns, At at) {
    return columns.template load_pairs<half>(at);
  }
  template <class Columns, class At>
  static GELU_EXT_DEVICE void store(const Columns& columns, At at, const typename Columns::Values& values) {
    columns.template store_pairs<half>(at, values);
  }
};
template <class Op>
inline constexpr bool is_interleaved = Op::operands != Op::matrices;
// The matrix that an operand lies in.
template <class Op, int I>
inline constexpr int kMatrixOf = is_interleaved<Op> ? 0 : I;
template <class Op, int I>
using AccessOf = std::conditional_t<is_interleaved<Op>, InPairs<I>, Alone>;

// The operands from what was loaded of each, and back.
template <class Op, class Values>
GELU_EXT_DEVICE void take_pairs_apart(Values (&values)[Op::operands]) {
  if constexpr (is_interleaved<Op>) {
    constexpr int kCount = sizeof(values[0].value) / sizeof(values[0].value[0]);
    const Values pairs[] = {values[0], values[1]};
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      values[0][k] = pairs[2 * k / kCount][2 * k % kCount];
      values[1][k] = pairs[2 * k / kCount][2 * k % kCount + 1];
    }
  }
}
template <class Op, class Values>
GELU_EXT_DEVICE void put_pairs_together(Values (&values)[Op::operands]) {
  if constexpr (is_interleaved<Op>) {
    constexpr int kCount = sizeof(values[0].value) / sizeof(values[0].value[0]);
    const Values apart[] = {values[0], values[1]};
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      values[2 * k / kCount][2 * k % kCount] = apart[0][k];
      values[2 * k / kCount][2 * k % kCount + 1] = apart[1][k];
    }
  }
}

// Calls f with the TypeTag of the columns to use. float64, which is there for exactness, has pieces alone, and so have
// operands that are interleaved: pieces of 8 bytes of a result are 16 of theirs.
template <class Op, DType D, class F>
void with_columns(int piece, F&& f) {
  if constexpr (D != DType::float64 && !is_interleaved<Op>) {
    if (piece == elements_per_thread(D)) return f(TypeTag<VectorColumns<D>>{});
  }
  f(TypeTag<PieceColumns<D>>{});
}

}  // namespace gelu_ext::cuda
