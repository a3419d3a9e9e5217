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

// kPieces of scalar_math.h: AVX2 and AVX-512 look one of a register's numbers up in an instruction.
#if defined(GELU_EXT_HAS_AVX2)
constexpr int kRegisterPieces = kRegisterSize;
#else
constexpr int kRegisterPieces = 0;
#endif
constexpr float kUnit = kUnitShift<kRegisterPieces>;

typedef float Floats __attribute__((vector_size(kRegisterBytes)));
typedef uint32_t Bits __attribute__((vector_size(kRegisterBytes)));
typedef int32_t Ints __attribute__((vector_size(kRegisterBytes)));
typedef uint16_t Shorts __attribute__((vector_size(kRegisterBytes / 2)));
typedef double Doubles __attribute__((vector_size(kRegisterBytes * 2)));

// --- one register ----------------------------------------------------------------------------------------------------

// The overloads for one number stay visible beside these.
using gelu_ext::from_bits;
using gelu_ext::product;
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

// Zen 5 multiplies two normal numbers to a subnormal one in several times the time, but not if it adds something too.
GELU_EXT_FN Floats product(Floats a, Floats b) {
#if defined(GELU_EXT_HAS_FMA)
  return mul_add(a, b, broadcast(-0.0f));
#else
  return a * b;
#endif
}

// Keeps a NaN: the instruction returns its second operand then.
GELU_EXT_FN Floats clamped_magnitude_or_nan(Floats x, float limit) {
  const Floats magnitude = from_bits(to_bits(x) & 0x7fffffffu), most = broadcast(limit);
#if defined(GELU_EXT_HAS_AVX512)
  return _mm512_min_ps(most, magnitude);
#elif defined(GELU_EXT_HAS_AVX2)
  return _mm256_min_ps(most, magnitude);
#else
  return most < magnitude ? most : magnitude;
#endif
}
GELU_EXT_FN Floats clamped_magnitude(Floats x, float limit) {
#if defined(GELU_EXT_HAS_AVX512)
  constexpr int kSmallerMagnitude = 0b10, kPositive = 0b1000;
  return _mm512_range_ps(x, broadcast(limit), kSmallerMagnitude | kPositive);
#else
  return clamped_magnitude_or_nan(x, limit);
#endif
}

// The instructions return their second operand for a NaN and for two zeros.
GELU_EXT_FN Floats at_least(Floats x, float low) {
#if defined(GELU_EXT_HAS_AVX512)
  return _mm512_max_ps(broadcast(low), x);
#elif defined(GELU_EXT_HAS_AVX2)
  return _mm256_max_ps(broadcast(low), x);
#else
  return x < low ? broadcast(low) : x;
#endif
}
GELU_EXT_FN Floats at_most(Floats x, float high) {
#if defined(GELU_EXT_HAS_AVX512)
  return _mm512_min_ps(broadcast(high), x);
#elif defined(GELU_EXT_HAS_AVX2)
  return _mm256_min_ps(broadcast(high), x);
#else
  return x > high ? broadcast(high) : x;
#endif
}

GELU_EXT_FN Floats max0(Floats x) { return at_least(x, -0.0f); }

// a where x > bound or x is NaN, else b
GELU_EXT_FN Floats where_above(Floats x, float bound, Floats a, Floats b) {
#if defined(GELU_EXT_HAS_AVX512)
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, broadcast(bound), _CMP_NLE_UQ), b, a);
#elif defined(GELU_EXT_HAS_AVX2)
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, broadcast(bound), _CMP_NLE_UQ));
#else
  return x <= bound ? b : a;
#endif
}

// a where x <= bound or x is NaN, else b
GELU_EXT_FN Floats where_at_most(Floats x, float bound, Floats a, Floats b) {
#if defined(GELU_EXT_HAS_AVX512)
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, broadcast(bound), _CMP_NGT_UQ), b, a);
#elif defined(GELU_EXT_HAS_AVX2)
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, broadcast(bound), _CMP_NGT_UQ));
#else
  return x > bound ? b : a;
#endif
}

// a where x == y, else b
GELU_EXT_FN Floats where_equal(Floats x, Floats y, Floats a, Floats b) {
#if defined(GELU_EXT_HAS_AVX512)
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ), b, a);
#elif defined(GELU_EXT_HAS_AVX2)
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_EQ_OQ));
#else
  return x == y ? a : b;
#endif
}

GELU_EXT_FN Floats with_sign_of(Floats x, Floats y) {
  return from_bits((to_bits(y) & 0x7fffffffu) | (to_bits(x) & 0x80000000u));
}

// 1 - s where x > 0, else s
GELU_EXT_FN Floats complement_where_positive(Floats x, Floats s) {
#if defined(GELU_EXT_HAS_AVX512)
  return _mm512_mask_sub_ps(s, _mm512_cmp_ps_mask(x, Floats{}, _CMP_GT_OQ), broadcast(1.0f), s);
#else
  return x > 0.0f ? 1.0f - s : s;
#endif
}

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
// The instruction takes floor(n) and rounds to subnormals and zeros by itself.
GELU_EXT_FN Floats times_power_of_2(Floats x, Floats shifted_n) { return _mm512_scalef_ps(x, shifted_n - kUnit); }
GELU_EXT_FN Floats scaled_power_of_2(Floats x, Floats shifted_n) {
  return _mm512_scalef_ps(x, shifted_n - (kUnit - kScale));
}
#else
GELU_EXT_FN Floats scaled_power_of_2(Floats x, Floats shifted_n) {
  constexpr int kSteps = steps_of(kRegisterPieces);
  const Ints steps = reinterpret_cast<Ints>(shifted_n) - (static_cast<int32_t>(to_bits(kUnit)) + kSteps * kLowestPower);
#if defined(GELU_EXT_HAS_AVX2)
  const Bits bounded =
      reinterpret_cast<Bits>(_mm256_max_epi32(reinterpret_cast<__m256i>(steps), _mm256_setzero_si256()));
#else
  const Bits bounded = reinterpret_cast<Bits>(steps > 0 ? steps : Ints{});
#endif
  return x * from_bits(bounded / kSteps << 23);
}
#endif

// The piece of [0, 15) that t lies in, of as many as a register has numbers: the low bits of the exponent of t + 1 and
// the high bits of its fraction, so that equally many pieces lie between t + 1 = 1 and 2, 2 and 4, 4 and 8, 8 and 16.
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

template <int N, class = std::make_integer_sequence<int, N>>
struct Pack;

#if defined(GELU_EXT_HAS_AVX512)
// x 2^n, not multiplied yet: what Product is elsewhere, by the instruction that scales.
template <class T>
struct Scaled {
  T x, shifted_n;

  GELU_EXT_FN T value() const { return T::scaled(x, shifted_n); }
  GELU_EXT_FN T plus(T c) const { return value() + c; }
  GELU_EXT_FN T subtracted_from(T c) const { return c - value(); }
};
#endif

// Written without loops: the compiler keeps an array in registers only if it sees its elements one by one from the
// start.
template <int N, int... I>
struct Pack<N, std::integer_sequence<int, I...>> {
  static constexpr int kSize = N * kRegisterSize;
  static constexpr int kPieces = kRegisterPieces;
  template <int>
  using One = Floats;

  Floats part[N];

  Pack() = default;
  GELU_EXT_FN Pack(One<I>... parts) : part{parts...} {}
  GELU_EXT_FN Pack(float x) : part{static_cast<One<I>>(broadcast(x))...} {}

  // f(i) for register i
  template <class F>
  static GELU_EXT_FN Pack generate(F f) {
    return {f(I)...};
  }
  // f(i, register i)
  template <class F>
  GELU_EXT_FN void for_each(F f) const {
    (f(I, part[I]), ...);
  }

  friend GELU_EXT_FN Pack operator-(Pack a) { return {-a.part[I]...}; }
  friend GELU_EXT_FN Pack operator+(Pack a, Pack b) { return {a.part[I] + b.part[I]...}; }
  friend GELU_EXT_FN Pack operator-(Pack a, Pack b) { return {a.part[I] - b.part[I]...}; }
  friend GELU_EXT_FN Pack operator*(Pack a, Pack b) { return {a.part[I] * b.part[I]...}; }
  friend GELU_EXT_FN Pack mul_add(Pack a, Pack b, Pack c) { return {mul_add(a.part[I], b.part[I], c.part[I])...}; }
  friend GELU_EXT_FN Pack fused(Pack a, Pack b, Pack c) { return {fused(a.part[I], b.part[I], c.part[I])...}; }
  friend GELU_EXT_FN Pack product(Pack a, Pack b) { return {product(a.part[I], b.part[I])...}; }
  friend GELU_EXT_FN Pack max0(Pack x) { return {max0(x.part[I])...}; }
  friend GELU_EXT_FN Pack at_least(Pack x, float low) { return {at_least(x.part[I], low)...}; }
  friend GELU_EXT_FN Pack at_most(Pack x, float high) { return {at_most(x.part[I], high)...}; }
  friend GELU_EXT_FN Pack where_above(Pack x, float bound, Pack a, Pack b) {
    return {where_above(x.part[I], bound, a.part[I], b.part[I])...};
  }
  friend GELU_EXT_FN Pack where_at_most(Pack x, float bound, Pack a, Pack b) {
    return {where_at_most(x.part[I], bound, a.part[I], b.part[I])...};
  }
  friend GELU_EXT_FN Pack where_equal(Pack x, Pack y, Pack a, Pack b) {
    return {where_equal(x.part[I], y.part[I], a.part[I], b.part[I])...};
  }
  friend GELU_EXT_FN Pack with_sign_of(Pack x, Pack y) { return {with_sign_of(x.part[I], y.part[I])...}; }
  friend GELU_EXT_FN Pack rough_reciprocal(Pack x) { return {rough_reciprocal(x.part[I])...}; }
  friend GELU_EXT_FN Pack reciprocal(Pack x) { return {reciprocal(x.part[I])...}; }
  friend GELU_EXT_FN Pack clamped_magnitude(Pack x, float limit) { return {clamped_magnitude(x.part[I], limit)...}; }
  friend GELU_EXT_FN Pack clamped_magnitude_or_nan(Pack x, float limit) {
    return {clamped_magnitude_or_nan(x.part[I], limit)...};
  }
  friend GELU_EXT_FN Pack complement_where_positive(Pack x, Pack s) {
    return {complement_where_positive(x.part[I], s.part[I])...};
  }
  friend GELU_EXT_FN Pack scaled_power_of_2(Pack x, Pack shifted_n) {
    return {scaled_power_of_2(x.part[I], shifted_n.part[I])...};
  }
#if defined(GELU_EXT_HAS_AVX512)
  static GELU_EXT_FN Pack scaled(Pack x, Pack shifted_n) { return {times_power_of_2(x.part[I], shifted_n.part[I])...}; }
  friend GELU_EXT_FN Scaled<Pack> times_power_of_2(Pack x, Pack shifted_n) { return {x, shifted_n}; }
#else
  friend GELU_EXT_FN Product<Pack> times_power_of_2(Pack x, Pack shifted_n) {
    return {scaled_power_of_2(x, shifted_n), kUnscale};
  }
#endif

#if defined(GELU_EXT_HAS_AVX2)
  struct Piece {
    Bits part[N];
  };
  friend GELU_EXT_FN Piece piece_of(Pack t) {
    return Piece{{ piece_of(t.part[I])... }};
  }
  friend GELU_EXT_FN Piece bits_of(Pack x) {
    return Piece{{ to_bits(x.part[I])... }};
  }
  template <int Pieces>
  friend GELU_EXT_FN Pack look_up(const float (&row)[Pieces], Piece piece) {
    return {look_up(row, piece.part[I])...};
  }
#endif
};

// The precision P in packs of N registers; doubles go one by one, through the standard library's functions.
template <class P, int N>
struct InPacks : P {
  using type = Pack<N>;
};
template <class P, int N>
using Packed = std::conditional_t<is_double<P>, P, InPacks<P, N>>;

// How many registers make up a pack of the row loops. More of them overlap better, until what they compute no longer
// fits into the processor's registers and goes through memory. These are the fastest by measurement.
#if defined(GELU_EXT_HAS_AVX512)
template <class Act, class P>
constexpr int kWidth = !std::is_same_v<Act, Gelu> ? 5
                       : is_single<P>             ? 4
                                                  : 8;
#elif defined(GELU_EXT_HAS_AVX2)
template <class Act, class P>
constexpr int kWidth = 4;
#else
template <class Act, class P>
constexpr int kWidth = 8;
#endif
