// What dropout multiplies the elements of a row by, a piece of the row at a time, so that packs need not begin where
// the blocks of random numbers do. Included by row_loops.h, once per instruction set, inside its namespace.

#if defined(GELU_EXT_HAS_AVX2)

typedef uint64_t Words __attribute__((vector_size(kRegisterBytes)));

#if defined(GELU_EXT_HAS_AVX512)
constexpr int kCounterRegisters = 4;
// The counters of a register, so that store_factors() finds the even ones of it to be the first half of the blocks.
constexpr Words kCounterOrder = {0, 4, 1, 5, 2, 6, 3, 7};

GELU_EXT_FN Words product_of_low(Words a, uint32_t b) {
  return reinterpret_cast<Words>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi32(static_cast<int>(b))));
}

// The factors of a register of blocks, whose words are apart. Put together, two words are 64 bits, and four are the 128
// bits of a block, which are the numbers of 8 elements in turn.
GELU_EXT_FN void store_factors(float* dst, const Words (&word)[4], const Dropout& dropout) {
  const auto half = [](Words low, Words high) __attribute__((always_inline)) {
    return _mm512_mask_blend_epi32(0xaaaa, reinterpret_cast<__m512i>(low), reinterpret_cast<__m512i>(high << 32));
  };
  const __m512i first = half(word[0], word[1]), second = half(word[2], word[3]);
  const auto store = [&](__m512i numbers, float* dst) __attribute__((always_inline)) {
    const __m512i last_kept = _mm512_set1_epi16(static_cast<short>(dropout.last_kept));
    const __mmask32 kept = _mm512_cmple_epu16_mask(numbers, last_kept);
    const Floats scale = broadcast(static_cast<float>(dropout.scale));
    store_register(dst, _mm512_maskz_mov_ps(static_cast<__mmask16>(kept), scale));
    store_register(dst + kRegisterSize, _mm512_maskz_mov_ps(static_cast<__mmask16>(kept >> 16), scale));
  };
  store(_mm512_unpacklo_epi64(first, second), dst);
  store(_mm512_unpackhi_epi64(first, second), dst + 2 * kRegisterSize);
}
#else
constexpr int kCounterRegisters = 2;
constexpr Words kCounterOrder = {0, 2, 1, 3};

GELU_EXT_FN Words product_of_low(Words a, uint32_t b) {
  return reinterpret_cast<Words>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi32(static_cast<int>(b))));
}

GELU_EXT_FN void store_factors(float* dst, const Words (&word)[4], const Dropout& dropout) {
  const auto half = [](Words low, Words high) __attribute__((always_inline)) {
    return _mm256_blend_epi32(reinterpret_cast<__m256i>(low), reinterpret_cast<__m256i>(high << 32), 0xaa);
  };
  const __m256i first = half(word[0], word[1]), second = half(word[2], word[3]);
  const auto store = [&](__m256i numbers, float* dst) __attribute__((always_inline)) {
    const __m256i last_kept = _mm256_set1_epi16(static_cast<short>(dropout.last_kept));
    const __m256i kept = _mm256_cmpeq_epi16(_mm256_max_epu16(numbers, last_kept), last_kept);
    const Bits scale = to_bits(broadcast(static_cast<float>(dropout.scale)));
    const auto mask = [](__m128i half) __attribute__((always_inline)) {
      return reinterpret_cast<Bits>(_mm256_cvtepi16_epi32(half));
    };
    store_register(dst, scale & mask(_mm256_castsi256_si128(kept)));
    store_register(dst + kRegisterSize, scale & mask(_mm256_extracti128_si256(kept, 1)));
  };
  store(_mm256_unpacklo_epi64(first, second), dst);
  store(_mm256_unpackhi_epi64(first, second), dst + 2 * kRegisterSize);
}
#endif

// Several registers of counters, as a Pack is of floats: each round waits for the products of the one before.
template <class>
struct Counters;
template <int... I>
struct Counters<std::integer_sequence<int, I...>> {
  static constexpr int kPerRegister = kRegisterBytes / 8;
  template <int>
  using One = Words;

  Words part[sizeof...(I)];

  GELU_EXT_FN Counters(One<I>... parts) : part{parts...} {}
  GELU_EXT_FN Counters(uint64_t x) : part{One<I>{} + x...} {}
  static GELU_EXT_FN Counters from(uint64_t first) { return {(kCounterOrder + (first + I * kPerRegister))...}; }

  friend GELU_EXT_FN Counters operator^(Counters a, Counters b) { return {(a.part[I] ^ b.part[I])...}; }
  friend GELU_EXT_FN Counters operator^(Counters a, uint32_t b) { return {(a.part[I] ^ b)...}; }
  friend GELU_EXT_FN Counters operator>>(Counters a, int bits) { return {(a.part[I] >> bits)...}; }
  friend GELU_EXT_FN Counters product_of_low(Counters a, uint32_t b) { return {product_of_low(a.part[I], b)...}; }

  // Makes the blocks of these counters and stores their factors.
  GELU_EXT_FN void store(float* dst, uint64_t key, const Dropout& dropout) const {
    const PhiloxBlock<Counters> b = philox(*this, key);
    (store_factors(dst + I * kPerRegister * Dropout::kBlock,
                   {b.word[0].part[I], b.word[1].part[I], b.word[2].part[I], b.word[3].part[I]}, dropout),
     ...);
  }
};
using RegistersOfCounters = Counters<std::make_integer_sequence<int, kCounterRegisters>>;
constexpr int kBlocksTogether = kCounterRegisters * RegistersOfCounters::kPerRegister;

#else
constexpr int kBlocksTogether = 1;
#endif

// The factors of `blocks` blocks from `block` on, or of a few more: of kBlocksTogether at a time.
template <class S>
__attribute__((noinline)) void make_factors(S* dst, const Dropout& dropout, uint64_t block, int64_t blocks) {
  const auto key = static_cast<uint64_t>(dropout.philox[0]);
  const uint64_t end = block + static_cast<uint64_t>(blocks);
  for (; block < end; block += kBlocksTogether, dst += kBlocksTogether * Dropout::kBlock) {
    const uint64_t counter = block + static_cast<uint64_t>(dropout.philox[1]);
#if defined(GELU_EXT_HAS_AVX2)
    if constexpr (std::is_same_v<S, float>) {
      RegistersOfCounters::from(counter).store(dst, key, dropout);
      continue;
    }
#endif
    for (int i = 0; i < kBlocksTogether * Dropout::kBlock; ++i) {
      const auto block = philox(counter + static_cast<uint64_t>(i / Dropout::kBlock), key);
      dst[i] = number(block, i % Dropout::kBlock) <= dropout.last_kept ? static_cast<S>(dropout.scale) : S(0);
    }
  }
}

// The factors of a row from one column on, in the arithmetic type.
template <DType D>
class DropoutFactors {
 public:
  explicit DropoutFactors(const Problem& p) : dropout_(p.dropout), cols_(p.cols) {}

  // Makes those from `col` on and says up to where, at most `end`. Without dropout there is nothing to make.
  GELU_EXT_FN int64_t make(int64_t row, int64_t col, int64_t end) {
    if (!dropout_.drops()) return end;
    const auto index = static_cast<uint64_t>(dropout_.first + row * cols_ + col), block = index / Dropout::kBlock;
    begin_ = col - static_cast<int64_t>(index % Dropout::kBlock);
    end = col + kPiece < end ? col + kPiece : end;
    make_factors(factor_, dropout_, block, (end - begin_ + Dropout::kBlock - 1) / Dropout::kBlock);
    return end;
  }

  // The n numbers t, from column `col` on, of which some are dropped.
  template <class T, class N>
  GELU_EXT_FN T applied(const T& t, int64_t col, N n) const {
    return dropout_.drops() ? product(t, load<T>(factor_ + (col - begin_), n)) : t;
  }

 private:
  static constexpr int64_t kPiece = 1024;  // elements: stays in the first-level cache

  const Dropout dropout_;
  int64_t cols_, begin_ = 0;
  alignas(64) typename PrecisionOf<D>::type::scalar factor_[kPiece + (kBlocksTogether + 1) * Dropout::kBlock];
};
