// Storage: what one element and sixteen bytes of memory hold, and the conversion to and from opmath_t.
// Knows launch.cuh for the CUDA headers. Values are converted here and nowhere else; kernels compute in opmath_t.
#pragma once

#include <cstring>

#include "launch.cuh"

namespace gelu_ext::cuda {

#define GELU_EXT_DEVICE __device__ __forceinline__

// The two sides of GELU_EXT_LAUNCH_EARLY. The wait is for the whole of the earlier kernel and all that it wrote; no
// load may be moved before it.
GELU_EXT_DEVICE void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
GELU_EXT_DEVICE void wait_for_earlier_kernel() {
#if defined(GELU_EXT_EMULATE_CUDA)
  cuda_emulator::wait_for_earlier_kernel();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <DType>
struct ScalarOf;
template <>
struct ScalarOf<DType::float64> {
  using type = double;
};
template <>
struct ScalarOf<DType::float32> {
  using type = float;
};
template <>
struct ScalarOf<DType::float16> {
  using type = __half;
};
template <>
struct ScalarOf<DType::bfloat16> {
  using type = __nv_bfloat16;
};

template <class To, class From>
GELU_EXT_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(static_cast<void*>(&to), &from, sizeof(To));
  return to;
}

GELU_EXT_DEVICE double to_opmath(double x) { return x; }
GELU_EXT_DEVICE float to_opmath(float x) { return x; }
GELU_EXT_DEVICE float to_opmath(__half x) { return __half2float(x); }
GELU_EXT_DEVICE float to_opmath(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
GELU_EXT_DEVICE T from_opmath(double x) {
  return static_cast<T>(x);
}
template <class T>
GELU_EXT_DEVICE T from_opmath(float x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// Sixteen bytes as they lie in memory. They may be read from an array of any type.
struct __attribute__((may_alias, aligned(16))) Words {
  uint32_t word[4];
};

GELU_EXT_DEVICE Words load_words(const void* from) {
#if defined(__CUDA_ARCH__)
  const uint4 words = __ldg(static_cast<const uint4*>(from));
  return {{words.x, words.y, words.z, words.w}};
#else
  return *static_cast<const Words*>(from);
#endif
}

GELU_EXT_DEVICE void store_words(void* to, const Words& words) {
#if defined(__CUDA_ARCH__)
  *static_cast<uint4*>(to) = make_uint4(words.word[0], words.word[1], words.word[2], words.word[3]);
#else
  *static_cast<Words*>(to) = words;
#endif
}

// Pieces of the sixteen bytes: unsigned numbers of 8, 4 or 2.
template <class Piece>
GELU_EXT_DEVICE Piece load_piece(const void* from) {
#if defined(__CUDA_ARCH__)
  return __ldg(static_cast<const Piece*>(from));
#else
  Piece piece;
  std::memcpy(&piece, from, sizeof(Piece));
  return piece;
#endif
}
template <class Piece>
GELU_EXT_DEVICE void store_piece(void* to, Piece piece) {
#if defined(__CUDA_ARCH__)
  *static_cast<Piece*>(to) = piece;
#else
  std::memcpy(to, &piece, sizeof(Piece));
#endif
}

template <class Piece>
GELU_EXT_DEVICE void set_piece(Words& words, int i, Piece piece) {
  if constexpr (sizeof(Piece) == 8) {
    words.word[2 * i] = static_cast<uint32_t>(piece);
    words.word[2 * i + 1] = static_cast<uint32_t>(piece >> 32);
  } else if constexpr (sizeof(Piece) == 4) {
    words.word[i] = piece;
  } else {
    words.word[i / 2] |= static_cast<uint32_t>(piece) << (i % 2 * 16);  // the words begin as zeros
  }
}

template <class Piece>
GELU_EXT_DEVICE Piece get_piece(const Words& words, int i) {
  if constexpr (sizeof(Piece) == 8) {
    return static_cast<uint64_t>(words.word[2 * i + 1]) << 32 | words.word[2 * i];
  } else if constexpr (sizeof(Piece) == 4) {
    return words.word[i];
  } else {
    return static_cast<uint16_t>(words.word[i / 2] >> (i % 2 * 16));
  }
}

template <class T>
GELU_EXT_DEVICE T load_scalar(const T* from) {
#if defined(__CUDA_ARCH__)
  return __ldg(from);
#else
  return *from;
#endif
}

GELU_EXT_DEVICE void unpack(const Words& words, double (&values)[2], ScalarOf<DType::float64>) {
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    values[k] = bit_cast<double>(static_cast<uint64_t>(words.word[2 * k + 1]) << 32 | words.word[2 * k]);
  }
}
GELU_EXT_DEVICE void unpack(const Words& words, float (&values)[4], ScalarOf<DType::float32>) {
#pragma unroll
  for (int k = 0; k < 4; ++k) values[k] = bit_cast<float>(words.word[k]);
}
GELU_EXT_DEVICE void unpack(const Words& words, float (&values)[8], ScalarOf<DType::float16>) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float2 pair = __half22float2(bit_cast<__half2>(words.word[k]));
    values[2 * k] = pair.x;
    values[2 * k + 1] = pair.y;
  }
}
// bfloat16 is the upper half of a float: a shift and a mask. The library's conversion takes half an instruction more.
GELU_EXT_DEVICE void unpack(const Words& words, float (&values)[8], ScalarOf<DType::bfloat16>) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    values[2 * k] = bit_cast<float>(words.word[k] << 16);
    values[2 * k + 1] = bit_cast<float>(words.word[k] & 0xffff0000u);
  }
}

GELU_EXT_DEVICE Words pack(const double (&values)[2], ScalarOf<DType::float64>) {
  Words words;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const uint64_t bits = bit_cast<uint64_t>(values[k]);
    words.word[2 * k] = static_cast<uint32_t>(bits);
    words.word[2 * k + 1] = static_cast<uint32_t>(bits >> 32);
  }
  return words;
}
GELU_EXT_DEVICE Words pack(const float (&values)[4], ScalarOf<DType::float32>) {
  Words words;
#pragma unroll
  for (int k = 0; k < 4; ++k) words.word[k] = bit_cast<uint32_t>(values[k]);
  return words;
}
GELU_EXT_DEVICE Words pack(const float (&values)[8], ScalarOf<DType::float16>) {
  Words words;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    words.word[k] = bit_cast<uint32_t>(__floats2half2_rn(values[2 * k], values[2 * k + 1]));
  }
  return words;
}
GELU_EXT_DEVICE Words pack(const float (&values)[8], ScalarOf<DType::bfloat16>) {
  Words words;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    words.word[k] = bit_cast<uint32_t>(__floats2bfloat162_rn(values[2 * k], values[2 * k + 1]));
  }
  return words;
}

}  // namespace gelu_ext::cuda
