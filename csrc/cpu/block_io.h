// Reads and writes blocks of a row: storage type on one side, the arithmetic type in a small buffer on the other.
// Included once per instruction set, inside that set's namespace; its macros (GELU_EXT_HAS_F16C, ...) pick the
// conversion. The loops between then see nothing but arrays of float or double whose length is a multiple of kStep.

constexpr int kBlock = 512;  // elements: a few buffers of them stay in the first-level cache
constexpr int kStep = 16;    // one 512-bit vector of float

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <DType>
struct StorageOf;
template <>
struct StorageOf<DType::float64> {
  using type = double;
};
template <>
struct StorageOf<DType::float32> {
  using type = float;
};
template <>
struct StorageOf<DType::float16> {
  using type = Half;
};
template <>
struct StorageOf<DType::bfloat16> {
  using type = BFloat16;
};

inline float widen_one(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }

inline BFloat16 narrow_one(float x, BFloat16) {
  const uint32_t bits = to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest even
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>(x == x ? rounded : quiet_nan)};
}

inline float widen_one(Half x) {
  const uint32_t rest = x.bits & 0x7fffu, sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t normal = (rest << 13) + (112u << 23);
  const uint32_t subnormal = to_bits(from_bits(to_bits(0.5f) + rest) - 0.5f);  // no float subnormal: nothing to flush
  const uint32_t finite = rest < 0x400u ? subnormal : normal;
  return from_bits(sign | (rest < 0x7c00u ? finite : 0x7f800000u | (rest << 13)));
}

inline Half narrow_one(float x, Half) {
  const uint32_t bits = to_bits(x), rest = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  const uint32_t normal = (rest + 0xfffu + ((rest >> 13) & 1u) - (112u << 23)) >> 13;
  const uint32_t subnormal = to_bits(from_bits(rest) + 0.5f) - to_bits(0.5f);  // the addition rounds to 2^-24
  const uint32_t finite = rest < to_bits(0x1p-14f) ? subnormal : normal;
  const uint32_t bounded = rest < to_bits(65520.0f) ? finite : 0x7c00u;
  const uint32_t nan = 0x7e00u | ((rest >> 13) & 0x3ffu);
  return {static_cast<uint16_t>(sign | (rest > 0x7f800000u ? nan : bounded))};
}

inline float widen_one(float x) { return x; }

inline double narrow_double(double x, double) { return x; }
inline float narrow_double(double x, float) { return static_cast<float>(x); }
// By way of float, forced to an odd significand where it is inexact, so that the second rounding cannot err.
template <class S>
S narrow_double(double x, S storage) {
  const float nearest = static_cast<float>(x);
  const double rest = x - static_cast<double>(nearest);
  const uint32_t bits = to_bits(nearest);
  const bool toward_zero = rest != 0 && (rest < 0) == (nearest > 0);  // nearest lies beyond x
  const uint32_t odd = (toward_zero ? bits - 1 : bits) | 1u;
  return narrow_one(rest == 0 || rest != rest || nearest == 0 ? nearest : from_bits(odd), storage);
}

// src[0, n) -> dst[0, n)
template <class S, class T>
inline void widen(const S* __restrict__ src, T* __restrict__ dst, int64_t n) {
  int64_t i = 0;
#if defined(GELU_EXT_HAS_AVX512)
  if constexpr (std::is_same_v<S, Half> && std::is_same_v<T, float>) {
    for (; i + 16 <= n; i += 16) {
      _mm512_storeu_ps(dst + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i))));
    }
  }
#elif defined(GELU_EXT_HAS_F16C)
  if constexpr (std::is_same_v<S, Half> && std::is_same_v<T, float>) {
    for (; i + 8 <= n; i += 8) {
      _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
    }
  }
#endif
  for (; i < n; ++i) dst[i] = widen_one(src[i]);
}

// src[0, n) -> dst[0, n), rounded to nearest even
template <class T, class S>
inline void narrow(const T* __restrict__ src, S* __restrict__ dst, int64_t n) {
  int64_t i = 0;
#if defined(GELU_EXT_HAS_AVX512)
  if constexpr (std::is_same_v<S, Half> && std::is_same_v<T, float>) {
    for (; i + 16 <= n; i += 16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i),
                          _mm512_cvtps_ph(_mm512_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    }
  }
#elif defined(GELU_EXT_HAS_F16C)
  if constexpr (std::is_same_v<S, Half> && std::is_same_v<T, float>) {
    for (; i + 8 <= n; i += 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    }
  }
#endif
  for (; i < n; ++i) dst[i] = narrow_one(src[i], S{});
}

inline int padded(int n) { return (n + kStep - 1) & ~(kStep - 1); }

// A block of `n` elements to read: in place where the storage type is the arithmetic type and no padding is needed,
// otherwise converted into the buffer and padded with zeros.
template <class S, class T>
class Source {
 public:
  const T* read(const S* src, int n) {
    if constexpr (std::is_same_v<S, T>) {
      if (n % kStep == 0) return src;
      std::memcpy(buffer_, src, n * sizeof(T));
    } else {
      widen(src, buffer_, n);
    }
    for (int i = n; i < padded(n); ++i) buffer_[i] = 0;
    return buffer_;
  }

 private:
  alignas(64) T buffer_[kBlock];
};

// A block to write: begin() says where to put the padded block, finish() stores its first n elements.
template <class S, class T>
class Sink {
 public:
  T* begin(S* dst, int n) {
    if constexpr (std::is_same_v<S, T>) {
      if (dst != nullptr && n % kStep == 0) return dst;
    }
    return buffer_;
  }

  void finish(S* dst, int n) {
    if (dst == nullptr) return;
    if constexpr (std::is_same_v<S, T>) {
      if (n % kStep != 0) std::memcpy(dst, buffer_, n * sizeof(T));
    } else {
      narrow(buffer_, dst, n);
    }
  }

 private:
  alignas(64) T buffer_[kBlock];
};

// The bias of a block: -0 where there is none, since x + -0 is x for every x, -0 too.
template <class T>
class Bias {
 public:
  explicit Bias(const void* bias) : bias_(static_cast<const T*>(bias)) {
    if (bias_ == nullptr) {
      for (T& b : none_) b = T(-0.0);
    }
  }

  const T* read(int64_t col, int n) { return bias_ == nullptr ? none_ : block_.read(bias_ + col, n); }

 private:
  const T* bias_;
  Source<T, T> block_;
  alignas(64) T none_[kBlock];
};
