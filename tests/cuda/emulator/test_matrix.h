// Matrices for the emulated tests: storage formats decoded by their definition, allocations of exact size between
// guards, and units in the last place. Knows kernels.h; shares no conversion with what it tests.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"

extern "C" {
__attribute__((weak)) void __asan_poison_memory_region(const volatile void* address, size_t size);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}

namespace emulated {

using gelu_ext::DType;
using gelu_ext::size_of;

[[noreturn]] inline void fail(const std::string& message) {
  std::fflush(stdout);
  std::fprintf(stderr, "FAILED: %s\n", message.c_str());
  std::_Exit(1);
}

// A binary format: significand bits with the implicit one, and exponents of the smallest and largest normal numbers.
struct Format {
  int digits, min_exponent, max_exponent;

  static Format of(DType dtype) {
    switch (dtype) {
      case DType::float64: return {53, -1022, 1023};
      case DType::float32: return {24, -126, 127};
      case DType::float16: return {11, -14, 15};
      case DType::bfloat16: return {8, -126, 127};
    }
    __builtin_unreachable();
  }
  double ulp(double x) const {
    const int exponent = x == 0 ? min_exponent : std::max(std::ilogb(x), min_exponent);
    return std::ldexp(1.0, exponent - (digits - 1));
  }
  double max() const { return std::ldexp(2 - std::ldexp(1.0, 1 - digits), max_exponent); }
};

inline double decode16(uint16_t bits, const Format& format) {
  const int fraction_bits = format.digits - 1, exponent_bits = 15 - fraction_bits;
  const int fraction = bits & ((1 << fraction_bits) - 1), exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1);
  double x;
  if (exponent == (1 << exponent_bits) - 1) {
    x = fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    x = std::ldexp(fraction, format.min_exponent - fraction_bits);
  } else {
    x = std::ldexp(fraction + (1 << fraction_bits), exponent - 1 + format.min_exponent - fraction_bits);
  }
  return bits >> 15 ? -x : x;
}

inline uint16_t encode16(double x, const Format& format) {
  const int fraction_bits = format.digits - 1, exponent_bits = 15 - fraction_bits;
  const auto infinity = static_cast<uint16_t>(((1 << exponent_bits) - 1) << fraction_bits);
  const auto sign = static_cast<uint16_t>(std::signbit(x) ? 0x8000 : 0);
  if (std::isnan(x)) return infinity | 1;
  const double magnitude = std::fabs(x);
  if (magnitude >= format.max() + format.ulp(format.max()) / 2) return sign | infinity;
  const double ulp = format.ulp(magnitude);
  // A carry out of the fraction goes into the exponent, as it should.
  const int exponent =
      magnitude < std::ldexp(1.0, format.min_exponent) ? 0 : std::ilogb(magnitude) - format.min_exponent;
  return static_cast<uint16_t>(sign |
                               ((exponent << fraction_bits) + static_cast<int>(std::nearbyint(magnitude / ulp))));
}

// An allocation of exactly the bytes asked for, `offset` bytes behind a 64-byte boundary, filled with NaN. Under
// AddressSanitizer nothing beside it can be touched; elsewhere writes beside it are found afterwards.
class Memory {
 public:
  Memory(size_t bytes, size_t offset) : bytes_(bytes), lead_(kGuard + offset) {
    if (is_sparse()) {  // only the pages in use exist
      void* memory = mmap(nullptr, whole(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) fail("no memory");
      base_ = static_cast<char*>(memory);
    } else {
      base_ = static_cast<char*>(std::aligned_alloc(64, (whole() + 63) / 64 * 64));
    }
    refill();
  }
  ~Memory() {
    protect(false);
    is_sparse() ? static_cast<void>(munmap(base_, whole())) : std::free(base_);
  }
  Memory(const Memory&) = delete;

  char* data() { return base_ + lead_; }
  size_t bytes() const { return bytes_; }
  bool is_sparse() const { return bytes_ > size_t{1} << 30; }
  void refill() {
    if (is_sparse()) return;
    protect(false);
    std::memset(base_, 0xff, whole());
    protect(true);
  }
  bool guards_hold() {
    if (is_sparse()) return true;
    protect(false);
    const auto filled = [](char c) { return c == char(0xff); };
    const bool hold = std::all_of(base_, data(), filled) && std::all_of(data() + bytes_, base_ + whole(), filled);
    protect(true);
    return hold;
  }
  std::vector<char> copy() { return is_sparse() ? std::vector<char>() : std::vector<char>(data(), data() + bytes_); }

 private:
  static constexpr size_t kGuard = 64;
  size_t whole() const { return lead_ + bytes_ + kGuard; }
  void protect(bool on) {
    const auto call = on ? __asan_poison_memory_region : __asan_unpoison_memory_region;
    if (call == nullptr || is_sparse()) return;
    call(base_, lead_);
    call(data() + bytes_, kGuard);
  }

  size_t bytes_, lead_;
  char* base_;
};

// A matrix in some memory, or null: memory == nullptr.
struct View {
  std::shared_ptr<Memory> memory;
  DType dtype = DType::float64;
  int64_t first = 0, rows = 0, cols = 0, row_stride = 0;  // in elements
  int step = 1;                                           // from column to column

  explicit operator bool() const { return memory != nullptr; }
  void* data() const { return memory ? memory->data() + first * size_of(dtype) : nullptr; }
  char* address(int64_t row, int64_t col) const {
    return memory->data() + (first + row * row_stride + col * step) * static_cast<int64_t>(size_of(dtype));
  }
  double at(int64_t row, int64_t col) const {
    const char* from = address(row, col);
    switch (dtype) {
      case DType::float64: return read<double>(from);
      case DType::float32: return read<float>(from);
      case DType::float16:
      case DType::bfloat16: return decode16(read<uint16_t>(from), Format::of(dtype));
    }
    __builtin_unreachable();
  }
  void set(int64_t row, int64_t col, double value) const {
    char* to = address(row, col);
    switch (dtype) {
      case DType::float64: return write<double>(to, value);
      case DType::float32: return write<float>(to, static_cast<float>(value));
      case DType::float16:
      case DType::bfloat16: return write<uint16_t>(to, encode16(value, Format::of(dtype)));
    }
  }

 private:
  template <class T>
  static T read(const char* from) {
    T value;
    std::memcpy(&value, from, sizeof(T));
    return value;
  }
  template <class T>
  static void write(char* to, T value) {
    std::memcpy(to, &value, sizeof(T));
  }
};

inline View matrix(DType dtype, int64_t rows, int64_t cols, int64_t row_stride, int64_t offset) {
  const size_t elements = static_cast<size_t>((rows - 1) * row_stride + cols);
  return {
      std::make_shared<Memory>(elements * size_of(dtype), offset * size_of(dtype)), dtype, 0, rows, cols, row_stride};
}

}  // namespace emulated
