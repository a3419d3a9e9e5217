// How exact the activations are: their largest errors, in units in the last place of the type that stores the result,
// against bars. Every bfloat16 and float16 input, a sample of float32 and float64, with --thinned a twentieth of it;
// with --all also every float32 in +-[2^-6, 16].
//
// run_accuracy.py beside this compiles it for each arithmetic: the packs of each CPU instruction set, and with
// GELU_EXT_MODEL_DEVICE the device's, its special-function unit being off by as much as it may.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "cpu/instruction_set.h"
#include "truth.h"

#if defined(GELU_EXT_HAS_AVX2)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_FMA)
#include <arm_neon.h>
#endif

namespace gelu_ext::cpu {
namespace {
#include "cpu/pack.h"
#include "cpu/storage.h"
}  // namespace
}  // namespace gelu_ext::cpu

namespace {

using namespace gelu_ext;

// --- the types that store results, their bars and their inputs -------------------------------------------------------

// Inputs are numbered: `input` of first, first + step, ... below last.
struct Range {
  uint64_t first, last, step;
};

struct Bars {
  double value, value_in_tail;  // the tail: below -4
  double slope, slope_in_tail;
  double slope_near_root;  // absolute, beyond the rounding to 16 bits; 0: none
  double root_below;       // near the root: where |slope| is smaller
};

double bfloat16_input(uint64_t bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }

double float16_input(uint64_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double size = exponent == 31  ? std::numeric_limits<double>::infinity()
                      : exponent == 0 ? std::ldexp(fraction, -24)
                                      : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -size : size;
}

double float32_input(uint64_t bits) { return from_bits(static_cast<uint32_t>(bits)); }

// Evenly spread over [-40, 40], then over the magnitudes below.
double float64_input(uint64_t i) {
  const double spread = std::fmod(static_cast<double>(i) * 0.6180339887498949, 1.0);
  const double even = 80 * spread - 40;
  return i % 8 == 0 ? even * std::ldexp(1.0, -static_cast<int>(i / 8 % 1000)) : even;
}

struct Storage {
  const char* name;
  int digits, min_exponent;
  Bars bars;
  double (*input)(uint64_t);
  std::vector<Range> ranges;
};

// `thinned`: one of so many of the samples
std::vector<Storage> storages(bool all, uint64_t thinned) {
  const uint64_t step = 499 * thinned;
  std::vector<Range> float32{{0x00000000, 0x7f800000, step},  // some of all positive ones, and of all negative ones
                             {0x80000000, 0xff800000, step},
                             {0x00000000, 0x00001000, 1},  // the smallest
                             {0x80000000, 0x80001000, 1},
                             {0xbf400000, 0xbf410000, 1}};  // the roots of the slopes, near -0.75
  if (all) {
    float32.push_back({0x3c800000, 0x41800001, 1});
    float32.push_back({0xbc800000, 0xc1800001, 1});
  }
  const std::vector<Range> every{{0, 65536, 1}};
  return {{"bfloat16", 8, -126, {0.505, 0.505, 0.51, 0.51, 0, 0}, bfloat16_input, every},
          // Below 2^-10 a twentieth of a float16 unit is less than the error that float arithmetic makes near the root.
          {"float16", 11, -14, {0.52, 0.52, 0.55, 0.55, 3e-8, 0x1p-10}, float16_input, every},
          {"float32", 24, -126, {4, 4, 5, 5, 3e-8, 0.05}, float32_input, float32},
          // Relative errors of 1e-14 and 1e-13, in the tail 1e-12.
          {"float64", 53, -1022, {45, 4500, 450, 4500, 1e-15, 0.05}, float64_input, {{0, 4000000, thinned}}}};
}

double unit_in_last_place(double x, const Storage& s) {
  return std::ldexp(1.0, std::max(x == 0 ? s.min_exponent : std::ilogb(x), s.min_exponent) - s.digits + 1);
}

double stored(double x, const Storage& s) {
  if (x == 0 || !std::isfinite(x)) return x;
  const double unit = unit_in_last_place(x, s);
  return std::nearbyint(x / unit) * unit;
}

// |got - wanted|; 0 where both overflow S, which got was computed in.
template <class S, class R>
double distance(double got, R wanted) {
  return std::isinf(got) && static_cast<S>(wanted) == got ? 0 : static_cast<double>(std::abs(got - wanted));
}

// --- measuring -------------------------------------------------------------------------------------------------------

struct Worst {
  double error = 0, at = 0;

  void see(double error_here, double x) {
    if (!(error_here <= error))
      error = std::isnan(error_here) ? std::numeric_limits<double>::infinity() : error_here, at = x;
  }
};

enum Measure { kValue, kValueInTail, kSlope, kSlopeInTail, kSlopeNearRoot, kMeasures };
using Report = std::array<Worst, kMeasures>;

constexpr int kBlock = 4096;

// As the arithmetic that is measured does it: the CPU's packs, or the device's one number.
#if defined(GELU_EXT_MODEL_DEVICE)
template <class P>
using Measured = P;
template <class T>
constexpr int kStep = 1;
template <class T>
T get(const T* src) {
  return *src;
}
template <class T>
void put(T* dst, T x) {
  *dst = x;
}
#else
template <class P>
using Measured = cpu::Packed<P, 4>;
template <class T>
constexpr int kStep = cpu::size_of_pack<T>;
template <class T, class S>
T get(const S* src) {
  return cpu::load<T>(src, cpu::Whole<T>{});
}
template <class S, class T>
void put(S* dst, const T& x) {
  cpu::store(dst, x, cpu::Whole<T>{});
}
#endif

template <class Act, class P, class S = typename P::scalar>
__attribute__((noinline)) void evaluate(const S* x, S* value, S* slope, S* both_value, S* both_slope) {
  using A = Activation<Act, Measured<P>>;
  using T = typename Measured<P>::type;
  for (int i = 0; i < kBlock; i += kStep<T>) {
    const T t = get<T>(x + i);
    put(value + i, A::value(t));
    put(slope + i, A::slope(t));
    const auto both = A::value_and_slope(t);
    put(both_value + i, both.value);
    put(both_slope + i, both.slope);
  }
}

template <class Act, class P, class R>
void measure_range(const Storage& s, const Range& range, Report& report) {
  using T = typename P::scalar;
  std::vector<T> x(kBlock), out[4];
  for (auto& o : out) o.resize(kBlock);
  const auto truth_at = truth_row<R>(Act::name)->at;
  const double rounding = s.digits < 24 ? 0.5 : 0;  // of a result to 16 bits, in units
  for (uint64_t next = range.first; next < range.last;) {
    int n = 0;
    for (; n < kBlock && next < range.last; next += range.step) {
      const double input = s.input(next);
      if (std::isfinite(input)) x[n++] = static_cast<T>(input);
    }
    evaluate<Act, P>(x.data(), out[0].data(), out[1].data(), out[2].data(), out[3].data());
    for (int i = 0; i < n; ++i) {
      const Truth<R> wanted = truth_at(x[i]);
      const double value_unit = unit_in_last_place(wanted.value, s), slope_unit = unit_in_last_place(wanted.slope, s);
      for (int k : {0, 2}) {
        const double error = distance<T>(stored(out[k][i], s), wanted.value);
        report[x[i] > -4 ? kValue : kValueInTail].see(error / value_unit, x[i]);
      }
      for (int k : {1, 3}) {
        const double error = distance<T>(stored(out[k][i], s), wanted.slope);
        if (x[i] <= -4) {
          report[kSlopeInTail].see(error / slope_unit, x[i]);
        } else if (std::abs(wanted.slope) >= s.bars.root_below) {
          report[kSlope].see(error / slope_unit, x[i]);
        } else {
          report[kSlopeNearRoot].see(std::max(error - rounding * slope_unit, 0.0), x[i]);
        }
      }
    }
  }
}

template <class Act, class P, class R>
void measure(const Storage& s, Report& report) {
  const unsigned threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<Report> reports(threads);
  std::vector<std::thread> workers;
  for (unsigned t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      for (const Range& range : s.ranges) {
        const uint64_t share = (range.last - range.first) / threads / range.step * range.step;
        const uint64_t first = range.first + t * share, last = t + 1 == threads ? range.last : first + share;
        measure_range<Act, P, R>(s, {first, last, range.step}, reports[t]);
      }
    });
  }
  for (auto& worker : workers) worker.join();
  for (const Report& part : reports) {
    for (int m = 0; m < kMeasures; ++m) report[m].see(part[m].error, part[m].at);
  }
}

// f() for every way that the special-function unit may be off, where it is used.
template <class P, class F>
void for_each_unit_error(F&& f) {
#if defined(GELU_EXT_MODEL_DEVICE)
  const int exp2_ulps = std::is_same_v<P, LowPrecision> ? 2 : 0,
            reciprocal_ulps = std::is_same_v<P, DoublePrecision> ? 0 : 1;
#else
  const int exp2_ulps = 0, reciprocal_ulps = 0;
  int special_exp2_ulps, special_reciprocal_ulps;
#endif
  for (special_exp2_ulps = -exp2_ulps; special_exp2_ulps <= exp2_ulps; ++special_exp2_ulps) {
    for (special_reciprocal_ulps = -reciprocal_ulps; special_reciprocal_ulps <= reciprocal_ulps;
         ++special_reciprocal_ulps)
      f();
  }
}

int failures = 0;

template <class Act, class P, class R>
void check_errors(const Storage& s) {
  Report report;
  for_each_unit_error<P>([&] { measure<Act, P, R>(s, report); });
  const double bars[] = {s.bars.value, s.bars.value_in_tail, s.bars.slope, s.bars.slope_in_tail,
                         s.bars.slope_near_root};
  std::printf("%-12s %-9s", Act::name, s.name);
  for (int m = 0; m < kMeasures; ++m) {
    if (m == kSlopeNearRoot && bars[m] == 0) continue;
    const bool good = report[m].error <= bars[m];
    failures += !good;
    std::printf(m == kSlopeNearRoot ? "  %7.1e at %-8.4g%s" : "  %9.4f at %-9.4g%s", report[m].error, report[m].at,
                good ? "" : "!");
  }
  std::printf("\n");
}

// --- special values --------------------------------------------------------------------------------------------------

bool same(double a, double b) {  // also in the sign of zero; any NaN is NaN
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

// A result that the type has is met exactly, sign of zero and all; so no residue of a clamp is left, which a gate would
// multiply. Any other one is within the bar.
template <class Act, class P, class R>
void check_special_values(const Storage& s) {
  using T = typename P::scalar;
  const auto is_good = [&](double got, R wanted, double bar) {
    const double nearest = stored(static_cast<double>(static_cast<T>(wanted)), s);
    if (same(got, nearest)) return true;
    const bool exact = nearest == wanted || nearest == 0 || std::isinf(nearest);
    return !exact && distance<T>(got, wanted) <= bar * unit_in_last_place(nearest, s);
  };
  const auto expect = [&](bool good, const char* what, double x) {
    failures += !good;
    if (!good) std::printf("%s, %s: wrong %s at %g\n", Act::name, s.name, what, x);
  };
  const auto check = [&](double x) {
    const Truth<R> wanted = truth<R>(Act::name, x);
    const std::vector<T> input(kBlock, static_cast<T>(x));
    auto v = input, d = input, both_v = input, both_d = input;
    evaluate<Act, P>(input.data(), v.data(), d.data(), both_v.data(), both_d.data());
    for (const auto& values : {v, both_v}) {
      expect(is_good(stored(values[0], s), wanted.value, s.bars.value), "value", x);
    }
    for (const auto& slopes : {d, both_d}) {  // a slope of 0 may have any sign
      expect(is_good(std::abs(stored(slopes[0], s)), std::abs(wanted.slope), s.bars.slope), "slope", x);
    }
  };
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (const double x : {nan, -nan}) check(x);
  const double smallest = std::ldexp(1.0, s.min_exponent - s.digits + 1),
               smallest_normal = std::ldexp(1.0, s.min_exponent);
  for (const double x : {inf, 0.0, 0x1p10, 0x1p15, 0x1p64, 0x1.fep127, 2 * smallest, 6 * smallest,
                         0.75 * smallest_normal, smallest_normal, 1.5 * smallest_normal}) {
    check(x);
    check(-x);
  }
}

template <class... Acts>
void check_all(ActivationList<Acts...>, const std::vector<Storage>& storages) {
  const auto check_activation = [&](auto activation) {
    using Act = decltype(activation);
    for (const Storage& s : storages) {
      const auto check = [&](auto precision, auto truth_type) {
        check_errors<Act, decltype(precision), decltype(truth_type)>(s);
        check_special_values<Act, decltype(precision), decltype(truth_type)>(s);
      };
      if (s.digits < 24) check(LowPrecision{}, double{});
      if (s.digits == 24) check(SinglePrecision{}, double{});
      if (s.digits > 24) check(DoublePrecision{}, 0.0L);
    }
  };
  (check_activation(Acts{}), ...);
}

}  // namespace

int main(int argc, char** argv) {
  const auto asked = [&](const char* option) { return argc > 1 && std::strcmp(argv[1], option) == 0; };
  std::printf(
      "largest errors in ulps: value, value below -4, slope, slope below -4; absolute: slope near its root; ! is over "
      "the bar\n");
  check_all(Activations{}, storages(asked("--all"), asked("--thinned") ? 20 : 1));
  std::printf(failures == 0 ? "all within the bars\n" : "%d over the bars\n", failures);
  return failures == 0 ? 0 : 1;
}
