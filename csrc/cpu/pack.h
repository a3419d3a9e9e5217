// A pack: several vector registers of floats that the mathematics treats as one number. Every formula is a long chain
// of dependent operations; a few registers in lock step keep the pipes busy where the processor's own window is too
// short to overlap whole chains.
//
// Included by row_loops.h, inside the target region and the namespace of one instruction set, whose macros
// (GELU_EXT_HAS_AVX512, ...) pick the instructions; without any it is vector arithmetic of 128 bits. The primitives of
// scalar_math.h are found for packs by argument-dependent lookup.

#if defined(GELU_EXT_HAS_AVX512)
constexpr int kRegisterBytes = 64;
#elif defined(GELU_EXT_HAS_AVX2)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif
constexpr int kRegisterSize = kRegisterBytes / sizeof(float);

typedef float Floats __attribute__((vector_size(kRegisterBytes)));
typedef uint32_t Bits __attribute__((vector_size(kRegisterBytes)));
typedef int32_t Ints __attribute__((vector_size(kRegisterBytes)));
typedef uint16_t Shorts __attribute__((vector_size(kRegisterBytes / 2)));
typedef double Doubles __attribute__((vector_size(kRegisterBytes * 2)));

// --- one register ----------------------------------------------------------------------------------------------------

// The overloads for one number stay visible beside these.
using gelu_ext::from_bits;
using gelu_ext::to_bits;

GELU_EXT_FN Bits to_bits(Floats x) { return reinterpret_cast<Bits>(x); }
GELU_EXT_FN Floats from_bits(Bits bits) { return reinterpret_cast<Floats>(bits); }

GELU_EXT_FN Floats broadcast(float x) {
#if defined(GELU_EXT_HAS_AVX512)
  return _mm512_set1_ps(x);
#elif defined(GELU_EXT_HAS_AVX2)
  return _mm256_set1_ps(x);
#else
  return Floats{x, x, x, x};
#endif
}

GELU_EXT_FN Floats mul_add(Floats a, Floats b, Floats c) {
#if defined(GELU_EXT_HAS_AVX512)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(GELU_EXT_HAS_AVX2)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_FEATURE_FMA)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

GELU_EXT_FN Floats fused(Floats a, Floats b, Floats c) {
#if defined(GELU_EXT_HAS_FMA)
  return mul_add(a, b, c);
#else
  return __builtin_convertvector(
      __builtin_convertvector(a, Doubles) * __builtin_convertvector(b, Doubles) + __builtin_convertvector(c, Doubles),
      Floats);
#endif
}

GELU_EXT_FN Floats clamped_magnitude(Floats x, float limit) {
  const Ints magnitude = reinterpret_cast<Ints>(to_bits(x) & 0x7fffffffu),
             most = reinterpret_cast<Ints>(broadcast(limit));
#if defined(GELU_EXT_HAS_AVX512)
  return reinterpret_cast<Floats>(
      _mm512_min_epi32(reinterpret_cast<__m512i>(magnitude), reinterpret_cast<__m512i>(most)));
#elif defined(GELU_EXT_HAS_AVX2)
  return reinterpret_cast<Floats>(
      _mm256_min_epi32(reinterpret_cast<__m256i>(magnitude), reinterpret_cast<__m256i>(most)));
#else
  return reinterpret_cast<Floats>(magnitude < most ? magnitude : most);
#endif
}

GELU_EXT_FN Floats max0(Floats x) {
  // The instruction returns its second operand for a NaN and for two zeros.
#if defined(GELU_EXT_HAS_AVX512)
  return _mm512_max_ps(broadcast(-0.0f), x);
#elif defined(GELU_EXT_HAS_AVX2)
  return _mm256_max_ps(broadcast(-0.0f), x);
#else
  return x < -0.0f ? broadcast(-0.0f) : x;
#endif
}

// first where x > 0, else second
GELU_EXT_FN Floats select_positive(Floats x, Floats first, Floats second) { return x > 0.0f ? first : second; }

GELU_EXT_FN Floats rough_reciprocal(Floats x) {
#if defined(GELU_EXT_HAS_AVX512)
  return _mm512_rcp14_ps(x);
#else
  return 1.0f / x;
#endif
}

GELU_EXT_FN Floats reciprocal(Floats x) {
#if defined(GELU_EXT_HAS_AVX512)
  const Floats rough = rough_reciprocal(x);
  return mul_add(mul_add(-x, rough, broadcast(1.0f)), rough, rough);
#else
  return 1.0f / x;
#endif
}

#if defined(GELU_EXT_HAS_AVX512)
// The integer itself, and an instruction that scales by powers of two, down to subnormals and zero.
GELU_EXT_FN Floats nearest_integer(Floats a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
GELU_EXT_FN Floats nearest_integer(Floats a, Floats b) { return nearest_integer(a * b); }
GELU_EXT_FN Floats minus_integer(Floats n) { return -n; }
GELU_EXT_FN Floats scaled_power_of_2(Floats x, Floats n) { return _mm512_scalef_ps(x, n + 33.0f); }
#else
GELU_EXT_FN Floats nearest_integer(Floats a) { return a + kShift; }
GELU_EXT_FN Floats nearest_integer(Floats a, Floats b) { return mul_add(a, b, broadcast(kShift)); }
GELU_EXT_FN Floats minus_integer(Floats n) { return kShift - n; }
GELU_EXT_FN Floats scaled_power_of_2(Floats x, Floats n) {
  const Ints power = reinterpret_cast<Ints>(n) - static_cast<int32_t>(to_bits(kShift));
#if defined(GELU_EXT_HAS_AVX2)
  const Ints bounded =
      reinterpret_cast<Ints>(_mm256_max_epi32(reinterpret_cast<__m256i>(power), _mm256_set1_epi32(kLowestPower)));
#else
  const Ints bounded = power > kLowestPower ? power : Ints{} + kLowestPower;
#endif
  return x * reinterpret_cast<Floats>((bounded - kLowestPower) << 23);
}
#endif

// Polynomials by pieces: as many as a register has places for coefficients, equally many between 1 and 2, 2 and 4, ...
#if defined(GELU_EXT_HAS_AVX512)
GELU_EXT_FN Bits piece_of(Floats t) { return to_bits(t + 1.0f) >> 21; }
GELU_EXT_FN Floats look_up(const float (&row)[16], Bits piece) {
  return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(piece), _mm512_load_ps(row));
}
#elif defined(GELU_EXT_HAS_AVX2)
GELU_EXT_FN Bits piece_of(Floats t) { return to_bits(t + 1.0f) >> 22; }
GELU_EXT_FN Floats look_up(const float (&row)[8], Bits piece) {
  return _mm256_permutevar8x32_ps(_mm256_load_ps(row), reinterpret_cast<__m256i>(piece));
}
#endif

// --- packs -----------------------------------------------------------------------------------------------------------

#if defined(GELU_EXT_HAS_AVX512)
template <int N>
struct Scaled;
#endif

template <int N>
struct Pack {
  static constexpr int kSize = N * kRegisterSize;
#if defined(GELU_EXT_HAS_AVX512)
  static constexpr int kPieces = 16;
#elif defined(GELU_EXT_HAS_AVX2)
  static constexpr int kPieces = 8;
#else
  static constexpr int kPieces = 0;
#endif

  Floats part[N];

  Pack() = default;
  GELU_EXT_FN Pack(float x) {
    for (Floats& p : part) p = broadcast(x);
  }

// part[i] = expression for every i
#define GELU_EXT_EACH(expression)                                               \
  {                                                                             \
    Pack r;                                                                     \
    _Pragma("GCC unroll 8") for (int i = 0; i < N; ++i) r.part[i] = expression; \
    return r;                                                                   \
  }
  friend GELU_EXT_FN Pack operator-(Pack a) GELU_EXT_EACH(-a.part[i]) friend GELU_EXT_FN Pack operator+(Pack a, Pack b)
      GELU_EXT_EACH(a.part[i] + b.part[i]) friend GELU_EXT_FN Pack operator-(Pack a, Pack b)
          GELU_EXT_EACH(a.part[i] - b.part[i]) friend GELU_EXT_FN Pack operator*(Pack a, Pack b)
              GELU_EXT_EACH(a.part[i] * b.part[i]) friend GELU_EXT_FN Pack mul_add(Pack a, Pack b, Pack c)
                  GELU_EXT_EACH(mul_add(a.part[i], b.part[i], c.part[i])) friend GELU_EXT_FN Pack
      fused(Pack a, Pack b, Pack c) GELU_EXT_EACH(fused(a.part[i], b.part[i], c.part[i])) friend GELU_EXT_FN Pack
      clamped_magnitude(Pack x, float limit) GELU_EXT_EACH(clamped_magnitude(x.part[i], limit)) friend GELU_EXT_FN Pack
      max0(Pack x) GELU_EXT_EACH(max0(x.part[i])) friend GELU_EXT_FN Pack select_positive(Pack x, Pack a, Pack b)
          GELU_EXT_EACH(select_positive(x.part[i], a.part[i], b.part[i])) friend GELU_EXT_FN Pack
      rough_reciprocal(Pack x) GELU_EXT_EACH(rough_reciprocal(x.part[i])) friend GELU_EXT_FN Pack
      reciprocal(Pack x) GELU_EXT_EACH(reciprocal(x.part[i])) friend GELU_EXT_FN Pack nearest_integer(Pack a, Pack b)
          GELU_EXT_EACH(nearest_integer(a.part[i], b.part[i])) friend GELU_EXT_FN Pack minus_integer(Pack n)
              GELU_EXT_EACH(minus_integer(n.part[i])) friend GELU_EXT_FN Pack nearest_integer(Pack a)
                  GELU_EXT_EACH(nearest_integer(a.part[i])) friend GELU_EXT_FN Pack scaled_power_of_2(Pack x, Pack n)
                      GELU_EXT_EACH(scaled_power_of_2(x.part[i], n.part[i]))
#undef GELU_EXT_EACH

#if defined(GELU_EXT_HAS_AVX512)
                          friend GELU_EXT_FN Scaled<N> times_power_of_2(Pack x, Pack n) {
    return {x, n};
  }
#else
                          friend GELU_EXT_FN Product<Pack> times_power_of_2(Pack x, Pack n) {
    return {scaled_power_of_2(x, n), kPowerUnscale};
  }
#endif

#if defined(GELU_EXT_HAS_AVX2)
  struct Piece {
    Bits part[N];
  };
  friend GELU_EXT_FN Piece piece_of(Pack t) {
    Piece piece;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) piece.part[i] = piece_of(t.part[i]);
    return piece;
  }
  template <int Pieces>
  friend GELU_EXT_FN Pack look_up(const float (&row)[Pieces], Piece piece) {
    Pack r;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) r.part[i] = look_up(row, piece.part[i]);
    return r;
  }
#endif
};

#if defined(GELU_EXT_HAS_AVX512)
// x 2^n, as a Product would be used, but by the instruction that scales.
template <int N>
struct Scaled {
  Pack<N> x, n;

  GELU_EXT_FN Pack<N> value() const {
    Pack<N> r;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) r.part[i] = _mm512_scalef_ps(x.part[i], n.part[i]);
    return r;
  }
  GELU_EXT_FN Pack<N> plus(Pack<N> c) const { return value() + c; }
  GELU_EXT_FN Pack<N> subtracted_from(Pack<N> c) const { return c - value(); }
};
#endif

// The precision P in packs of N registers; doubles go one by one, through the standard library's functions.
template <class P, int N>
struct InPacks : P {
  using type = Pack<N>;
};
template <class P, int N>
using Packed = std::conditional_t<is_double<P>, P, InPacks<P, N>>;
