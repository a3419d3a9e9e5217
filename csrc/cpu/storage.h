// Loads and stores: from each storage type to what the arithmetic is done in, and back, rounded to nearest even.
// Included by row_loops.h, once per instruction set, inside its namespace.

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

// --- conversions in integer arithmetic, of one number (F is float, U is uint32_t) or of a register of them -----------

template <class F, class U>
GELU_EXT_FN U bfloat16_from(F x) {
  const U bits = to_bits(x);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest even
  const U quiet_nan = (bits >> 16) | 0x40u;
  return x == x ? rounded : quiet_nan;
}

template <class F, class U>
GELU_EXT_FN F float_from_half(U half) {
  const U rest = half & 0x7fffu, sign = (half & 0x8000u) << 16;
  const U normal = (rest << 13) + (112u << 23);
  const U subnormal = to_bits(from_bits(rest + to_bits(0.5f)) - 0.5f);  // a normal float: none that could be flushed
  const U finite = rest < 0x400u ? subnormal : normal;
  const U all = rest < 0x7c00u ? finite : 0x7f800000u | (rest << 13);
  return from_bits(sign | all);
}

template <class F, class U>
GELU_EXT_FN U half_from(F x) {
  const U bits = to_bits(x), rest = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  const U normal = (rest + 0xfffu + ((rest >> 13) & 1u) - (112u << 23)) >> 13;
  const U subnormal = to_bits(from_bits(rest) + 0.5f) - to_bits(0.5f);  // the addition rounds to 2^-24
  const U finite = rest < to_bits(0x1p-14f) ? subnormal : normal;
  const U infinite = (rest & 0u) | 0x7c00u, nan = 0x7e00u | ((rest >> 13) & 0x3ffu);
  const U bounded = rest < to_bits(65520.0f) ? finite : infinite;
  const U all = rest > 0x7f800000u ? nan : bounded;
  return sign | all;
}

GELU_EXT_FN double widen_one(double x) { return x; }
GELU_EXT_FN float widen_one(float x) { return x; }
GELU_EXT_FN float widen_one(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
GELU_EXT_FN float widen_one(Half x) { return float_from_half<float, uint32_t>(x.bits); }

GELU_EXT_FN BFloat16 narrow_one(float x, BFloat16) {
  return {static_cast<uint16_t>(bfloat16_from<float, uint32_t>(x))};
}
GELU_EXT_FN Half narrow_one(float x, Half) { return {static_cast<uint16_t>(half_from<float, uint32_t>(x))}; }

inline double narrow_double(double x, double) { return x; }
inline float narrow_double(double x, float) { return static_cast<float>(x); }
// By way of float. Where that is inexact its last bit is set, so that the second rounding sees no false tie.
template <class S>
S narrow_double(double x, S storage) {
  const float nearest = static_cast<float>(x);
  const double rest = x - static_cast<double>(nearest);
  const uint32_t bits = to_bits(nearest);
  const bool toward_zero = rest != 0 && (rest < 0) == (nearest > 0);  // nearest lies beyond x
  const uint32_t odd = (toward_zero ? bits - 1 : bits) | 1u;
  return narrow_one(rest == 0 || rest != rest || nearest == 0 ? nearest : from_bits(odd), storage);
}

// --- one register ----------------------------------------------------------------------------------------------------

template <class R>
GELU_EXT_FN R load_register(const void* src) {
  R r;
  std::memcpy(&r, src, sizeof(R));
  return r;
}
template <class R>
GELU_EXT_FN void store_register(void* dst, R r) {
  std::memcpy(dst, &r, sizeof(R));
}

GELU_EXT_FN Bits widened(Shorts x) {
#if defined(GELU_EXT_HAS_AVX512)
  return reinterpret_cast<Bits>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(x)));
#elif defined(GELU_EXT_HAS_AVX2)
  return reinterpret_cast<Bits>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(x)));
#else
  return __builtin_convertvector(x, Bits);
#endif
}

GELU_EXT_FN Floats load_floats(const float* src) { return load_register<Floats>(src); }
GELU_EXT_FN Floats load_floats(const BFloat16* src) { return from_bits(widened(load_register<Shorts>(src)) << 16); }
GELU_EXT_FN Floats load_floats(const Half* src) {
  const Shorts bits = load_register<Shorts>(src);
#if defined(GELU_EXT_HAS_AVX512)
  return _mm512_cvtph_ps(reinterpret_cast<__m256i>(bits));
#elif defined(GELU_EXT_HAS_AVX2)
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(bits));
#else
  return float_from_half<Floats, Bits>(widened(bits));
#endif
}

// The lower 16 bits of each.
GELU_EXT_FN Shorts narrowed(Bits x) {
#if defined(GELU_EXT_HAS_AVX512)
  return reinterpret_cast<Shorts>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(x)));
#elif defined(GELU_EXT_HAS_AVX2)
  const __m256i packed = _mm256_packus_epi32(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(x));
  return reinterpret_cast<Shorts>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
  return __builtin_convertvector(x, Shorts);
#endif
}

GELU_EXT_FN void store_floats(float* dst, Floats x) { store_register(dst, x); }
GELU_EXT_FN void store_floats(BFloat16* dst, Floats x) {
  store_register(dst, narrowed(bfloat16_from<Floats, Bits>(x)));
}
GELU_EXT_FN void store_floats(Half* dst, Floats x) {
#if defined(GELU_EXT_HAS_AVX512)
  store_register(dst, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(GELU_EXT_HAS_AVX2)
  store_register(dst, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#else
  store_register(dst, narrowed(half_from<Floats, Bits>(x)));
#endif
}

// --- packs, or a double ----------------------------------------------------------------------------------------------

template <class T>
inline constexpr int size_of_pack = T::kSize;
template <>
inline constexpr int size_of_pack<double> = 1;

// As the number of elements to load or store: all of a pack, which the compiler then knows. Otherwise it is an int.
template <class T>
using Whole = std::integral_constant<int, size_of_pack<T>>;

template <class T, class S>
GELU_EXT_FN T load(const S* src, Whole<T>) {
  if constexpr (std::is_same_v<T, double>) {
    return *src;
  } else {
    return T::generate([&](int i) __attribute__((always_inline)) { return load_floats(src + i * kRegisterSize); });
  }
}
// The first n < Size elements, on their way from or to whole registers. A call of memcpy would take as long as several
// packs do.
template <class S, int Size>
struct Buffer {
#if defined(GELU_EXT_HAS_AVX512)
  static constexpr int kPerRegister = kRegisterBytes / sizeof(S);

  alignas(kRegisterBytes) S elements[Size < kPerRegister ? kPerRegister : Size];

  GELU_EXT_FN void read(const S* src, int n) {  // the others become zeros
    for (int i = 0; i < Size; i += kPerRegister) {
      if constexpr (sizeof(S) == 4) {
        _mm512_store_ps(elements + i, _mm512_maskz_loadu_ps(first(n - i), src + i));
      } else {
        _mm512_store_si512(elements + i, _mm512_maskz_loadu_epi16(first(n - i), src + i));
      }
    }
  }
  GELU_EXT_FN void write(S* dst, int n) const {
    for (int i = 0; i < Size; i += kPerRegister) {
      if constexpr (sizeof(S) == 4) {
        _mm512_mask_storeu_ps(dst + i, first(n - i), _mm512_load_ps(elements + i));
      } else {
        _mm512_mask_storeu_epi16(dst + i, first(n - i), _mm512_load_si512(elements + i));
      }
    }
  }

 private:
  static GELU_EXT_FN auto first(int n) {
    using Mask = std::conditional_t<sizeof(S) == 4, __mmask16, __mmask32>;
    return static_cast<Mask>(n <= 0 ? 0 : n >= kPerRegister ? -1 : (1 << n) - 1);
  }
#else
  alignas(kRegisterBytes) S elements[Size];

  GELU_EXT_FN void read(const S* src, int n) {
    std::memset(elements, 0, sizeof(elements));
    copy(src, elements, n);
  }
  GELU_EXT_FN void write(S* dst, int n) const { copy(elements, dst, n); }

 private:
  template <int Part = Size / 2>
  static GELU_EXT_FN void copy(const S* src, S* dst, int n) {
    if constexpr (Part > 0) {
      const int part = n & Part;
      if (part) std::memcpy(dst, src, Part * sizeof(S));
      copy<Part / 2>(src + part, dst + part, n);
    }
  }
#endif
};

template <class T, class S>
GELU_EXT_FN T load(const S* src, int n) {  // the others are zeros
  if constexpr (std::is_same_v<T, double>) {
    return *src;
  } else {
    Buffer<S, T::kSize> buffer;
    buffer.read(src, n);
    return load<T>(buffer.elements, Whole<T>{});
  }
}

#if defined(GELU_EXT_HAS_AVX2)
// Two registers to bfloat16, as 16-bit integers: the upper 16 bits of each float, plus 1 where the lower 16 bits round
// it up. Wrong for a NaN.
GELU_EXT_FN void store_pair(BFloat16* dst, Floats a, Floats b) {
  // Round up if low + (high & 1) > 0x8000: to nearest, ties to even.
#if defined(GELU_EXT_HAS_AVX512)
  alignas(64) static constexpr uint16_t kLow[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                                                    32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
  const __m512i low_places = _mm512_load_si512(kLow), one = _mm512_set1_epi16(1);
  const __m512i high_places = _mm512_or_si512(low_places, one);
  const __m512i x = _mm512_castps_si512(a), y = _mm512_castps_si512(b);
  const __m512i low = _mm512_permutex2var_epi16(x, low_places, y), high = _mm512_permutex2var_epi16(x, high_places, y);
  const __m512i excess = _mm512_adds_epu16(low, _mm512_and_si512(high, one));
  const __mmask32 up = _mm512_cmpgt_epu16_mask(excess, _mm512_set1_epi16(-0x8000));
  store_register(dst, _mm512_mask_add_epi16(high, up, high, one));
#else
  const __m256i x = _mm256_castps_si256(a), y = _mm256_castps_si256(b), lower = _mm256_set1_epi32(0xffff);
  const __m256i low = _mm256_packus_epi32(_mm256_and_si256(x, lower), _mm256_and_si256(y, lower));
  const __m256i high = _mm256_packus_epi32(_mm256_srli_epi32(x, 16), _mm256_srli_epi32(y, 16));
  const __m256i excess = _mm256_adds_epu16(low, _mm256_and_si256(high, _mm256_set1_epi16(1)));
  const __m256i up = _mm256_cmpeq_epi16(_mm256_max_epu16(excess, _mm256_set1_epi16(-0x7fff)), excess);
  store_register(dst, _mm256_permute4x64_epi64(_mm256_sub_epi16(high, up), 0xd8));  // packs interleave 128 bits
#endif
}

template <class T>
GELU_EXT_FN bool any_nan(const T& x) {
#if defined(GELU_EXT_HAS_AVX512)
  unsigned any = 0;
  x.for_each([&](int, Floats part)
                 __attribute__((always_inline)) { any |= _mm512_cmp_ps_mask(part, part, _CMP_UNORD_Q); });
  return any != 0;
#else
  __m256 any = _mm256_setzero_ps();
  x.for_each([&](int, Floats part)
                 __attribute__((always_inline)) { any = _mm256_or_ps(any, _mm256_cmp_ps(part, part, _CMP_UNORD_Q)); });
  return _mm256_movemask_ps(any) != 0;
#endif
}
#endif

#if defined(GELU_EXT_HAS_AVX512_BF16)
// The instruction that converts to bfloat16 takes subnormal numbers for zeros.
template <class T>
GELU_EXT_FN bool any_subnormal(const T& x) {
  constexpr int kSubnormal = 0x20;
  unsigned any = 0;
  x.for_each([&](int, Floats part) __attribute__((always_inline)) { any |= _mm512_fpclass_ps_mask(part, kSubnormal); });
  return any != 0;
}
#endif

// Stores the pack by a faster way that is not right for every number, and returns true, if it is right for these.
template <class T>
GELU_EXT_FN bool store_fast([[maybe_unused]] BFloat16* dst, [[maybe_unused]] const T& x) {
#if defined(GELU_EXT_HAS_AVX512_BF16)
  if (!any_subnormal(x)) {
    x.for_each([&](int i, Floats part) __attribute__((always_inline)) {
      store_register(dst + i * kRegisterSize, _mm512_cvtneps_pbh(part));
    });
    return true;
  }
#endif
#if defined(GELU_EXT_HAS_AVX2)
  if (!any_nan(x)) {
    constexpr int kLast = T::kSize / kRegisterSize - 1;
    x.for_each([&](int i, Floats part) __attribute__((always_inline)) {
      if (i % 2 == 1) store_pair(dst + (i - 1) * kRegisterSize, x.part[i - 1], part);
      if (i % 2 == 0 && i == kLast) store_floats(dst + i * kRegisterSize, part);
    });
    return true;
  }
#endif
  return false;
}

template <class T, class S>
GELU_EXT_FN void store(S* dst, const T& x, Whole<T>) {
  if constexpr (std::is_same_v<T, double>) {
    *dst = x;
  } else {
    if constexpr (std::is_same_v<S, BFloat16>) {
      if (store_fast(dst, x)) return;
    }
    x.for_each([&](int i, Floats part) __attribute__((always_inline)) { store_floats(dst + i * kRegisterSize, part); });
  }
}
template <class T, class S>
GELU_EXT_FN void store(S* dst, const T& x, int n) {
  if constexpr (std::is_same_v<T, double>) {
    *dst = x;
  } else {
    Buffer<S, T::kSize> buffer;
    store(buffer.elements, x, Whole<T>{});
    buffer.write(dst, n);
  }
}

// --- two packs in turn: x[0] y[0] x[1] y[1] ... ---------------------------------------------------------------------

// The x (Which = 0) or the y (1) of a register's number of pairs.
template <int Which>
GELU_EXT_FN Floats load_every_second(const float* src) {
  const Floats a = load_register<Floats>(src), b = load_register<Floats>(src + kRegisterSize);
#if defined(GELU_EXT_HAS_AVX512)
  alignas(64) static constexpr uint32_t kFirst[16] = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  const __m512i places = _mm512_add_epi32(_mm512_load_si512(kFirst), _mm512_set1_epi32(Which));
  return _mm512_permutex2var_ps(a, places, b);
#elif defined(GELU_EXT_HAS_AVX2)
  const __m256d halves = _mm256_castps_pd(_mm256_shuffle_ps(a, b, Which == 0 ? 0x88 : 0xdd));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(halves, 0xd8));  // shuffles stay within 128 bits
#else
  return Floats{a[Which], a[2 + Which], b[Which], b[2 + Which]};
#endif
}
template <int Which>
GELU_EXT_FN Floats load_every_second(const BFloat16* src) {
  const Bits pairs = load_register<Bits>(src);
  return from_bits(Which == 0 ? pairs << 16 : pairs & 0xffff0000u);
}
template <int Which>
GELU_EXT_FN Floats load_every_second(const Half* src) {
  const Bits pairs = load_register<Bits>(src);
  Half ordered[kRegisterSize];
  store_register(ordered, narrowed(Which == 0 ? pairs & 0xffffu : pairs >> 16));
  return load_floats(ordered);
}

GELU_EXT_FN void store_floats_in_turn(float* dst, Floats x, Floats y) {
#if defined(GELU_EXT_HAS_AVX512)
  alignas(64) static constexpr uint32_t kLow[16] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  store_register(dst, _mm512_permutex2var_ps(x, low, y));
  store_register(dst + kRegisterSize, _mm512_permutex2var_ps(x, high, y));
#elif defined(GELU_EXT_HAS_AVX2)
  const __m256 low = _mm256_unpacklo_ps(x, y), high = _mm256_unpackhi_ps(x, y);  // of each 128 bits
  store_register(dst, _mm256_permute2f128_ps(low, high, 0x20));
  store_register(dst + kRegisterSize, _mm256_permute2f128_ps(low, high, 0x31));
#else
  store_register(dst, Floats{x[0], y[0], x[1], y[1]});
  store_register(dst + kRegisterSize, Floats{x[2], y[2], x[3], y[3]});
#endif
}
template <class S>
GELU_EXT_FN void store_floats_in_turn(S* dst, Floats x, Floats y) {  // of 16 bits
  S ordered[2][kRegisterSize];
  store_floats(ordered[0], x);
  store_floats(ordered[1], y);
  store_register(dst, widened(load_register<Shorts>(ordered[0])) | widened(load_register<Shorts>(ordered[1])) << 16);
}

template <class T, int Which, class S>
GELU_EXT_FN T load_every_second(const S* src, Whole<T>) {
  if constexpr (std::is_same_v<T, double>) {
    return src[Which];
  } else {
    return T::generate(
        [&](int i) __attribute__((always_inline)) { return load_every_second<Which>(src + 2 * i * kRegisterSize); });
  }
}
template <class T, int Which, class S>
GELU_EXT_FN T load_every_second(const S* src, int n) {
  if constexpr (std::is_same_v<T, double>) {
    return src[Which];
  } else {
    Buffer<S, 2 * T::kSize> buffer;
    buffer.read(src, 2 * n);
    return load_every_second<T, Which>(buffer.elements, Whole<T>{});
  }
}

template <class T, class S>
GELU_EXT_FN void store_in_turn(S* dst, const T& x, const T& y, Whole<T>) {
  if constexpr (std::is_same_v<T, double>) {
    dst[0] = x;
    dst[1] = y;
  } else {
    x.for_each([&](int i, Floats part) __attribute__((always_inline)) {
      store_floats_in_turn(dst + 2 * i * kRegisterSize, part, y.part[i]);
    });
  }
}
template <class T, class S>
GELU_EXT_FN void store_in_turn(S* dst, const T& x, const T& y, int n) {
  if constexpr (std::is_same_v<T, double>) {
    dst[0] = x;
    dst[1] = y;
  } else {
    Buffer<S, 2 * T::kSize> buffer;
    store_in_turn(buffer.elements, x, y, Whole<T>{});
    buffer.write(dst, 2 * n);
  }
}
