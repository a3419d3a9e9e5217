// Which elements of a result dropout keeps, for g++ and nvcc; the CUDA kernels do not ask yet. No mask is stored: a
// forward and its backward ask for the same numbers, which depend on two integers and an element's index alone.
//
// The numbers are those of Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2,
// 3", SC 2011), a function of a key and a counter. A block of it is 8 numbers of 16 bits, for 8 elements that follow
// each other. So p is taken in steps of 2^-16; what is kept is multiplied by 1 / (1 - p) as it was given.
#pragma once

#include "scalar_math.h"

namespace gelu_ext {

struct Dropout {
  static constexpr int kBlock = 8;  // elements

  const int64_t* philox = nullptr;  // key and first counter, on the problem's device; null: all is kept
  int64_t first = 0;                // the index that the problem's first element has in the result
  double p = 0;
  uint32_t last_kept = 0;  // the largest number of 16 bits that keeps its element
  double scale = 1;

  Dropout() = default;
  Dropout(double p, const int64_t* philox) : philox(philox), p(p), scale(1 / (1 - p)) {
    const double kept = std::nearbyint((1 - p) * 0x1p16);
    last_kept = kept < 1 ? 0 : static_cast<uint32_t>(kept) - 1;
  }

  bool drops() const { return philox != nullptr; }
};

// The product of the lower halves.
GELU_EXT_FN uint64_t product_of_low(uint64_t a, uint32_t b) {
  return static_cast<uint64_t>(static_cast<uint32_t>(a)) * b;
}

// Four words of 32 bits, each in the lower half of a U: of 64 bits, or a pack of such. The upper halves are anything.
template <class U>
struct PhiloxBlock {
  U word[4];
};

// The rounds that are left, without a loop: every one is to be unrolled.
template <int kRounds, class U>
GELU_EXT_FN PhiloxBlock<U> philox_rounds(const PhiloxBlock<U>& b, uint32_t k0, uint32_t k1) {
  if constexpr (kRounds == 0) {
    return b;
  } else {
    const U p0 = product_of_low(b.word[0], 0xD2511F53u), p2 = product_of_low(b.word[2], 0xCD9E8D57u);
    const PhiloxBlock<U> next = {{(p2 >> 32) ^ b.word[1] ^ k0, p2, (p0 >> 32) ^ b.word[3] ^ k1, p0}};
    return philox_rounds<kRounds - 1>(next, k0 + 0x9E3779B9u, k1 + 0xBB67AE85u);
  }
}

// The block of a counter whose upper 64 bits are zero.
template <class U>
GELU_EXT_FN PhiloxBlock<U> philox(U counter, uint64_t key) {
  const PhiloxBlock<U> b = {{counter, counter >> 32, U(0), U(0)}};
  return philox_rounds<10>(b, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
}

// Of a block, the number for element i.
GELU_EXT_FN uint32_t number(const PhiloxBlock<uint64_t>& block, int i) {
  return static_cast<uint32_t>(block.word[i / 2]) >> (i % 2 * 16) & 0xffffu;
}

}  // namespace gelu_ext
