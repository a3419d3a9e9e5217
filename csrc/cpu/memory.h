// Page faults are most of the cost of a large fresh output: ask for huge pages before the first touch. They take an
// eighth of the time where the memory was in use a moment ago. Where it lay idle and the machine is a virtual one that
// gives idle memory back to its host, they take six times as long instead: who knows that the memory does not come from
// a call just before does not ask (Node in ops.h), and nobody asks for a while after a few calls that were so slow: a
// second, and twice as long every time that another few calls are.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>

#include "../kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace gelu_ext::cpu {

// Lives while an output is computed. Advice only: harmless where the memory has been touched before or the system has
// no huge pages.
class LargeOutput {
 public:
  LargeOutput(const Matrix& out, DType dtype, int64_t rows, int64_t cols, bool huge_pages) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kWorthwhile = 2 << 20;
    const int64_t width = rows == 1 ? cols : out.row_stride;
    const uintptr_t bytes = static_cast<uintptr_t>(rows * width) * size_of(dtype);
    if (!huge_pages || out.data == nullptr || bytes < kWorthwhile) return;
    began_ = std::chrono::steady_clock::now();
    if (began_.time_since_epoch().count() < pause_ends_.load(std::memory_order_relaxed)) return;
    static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(out.data) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(out.data) + bytes) / page * page;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
    if (dtype != DType::float64) watched_bytes_ = bytes;  // float64 is slow of itself
#else
    (void)out, (void)dtype, (void)rows, (void)cols, (void)huge_pages;
#endif
  }

  ~LargeOutput() {
    // Small pages take a third of a nanosecond a byte, the arithmetic no more.
    constexpr std::chrono::nanoseconds kSlowByte{1};
    constexpr int kOften = 12;  // up to nine were seen to wake what was idle
    constexpr int64_t kLongest = 64;
    if (watched_bytes_ == 0) return;
    const auto now = std::chrono::steady_clock::now();
    if (now - began_ < watched_bytes_ * kSlowByte) {
      slow_in_a_row_.store(0, std::memory_order_relaxed);
      pause_.store(1, std::memory_order_relaxed);
      return;
    }
    if (slow_in_a_row_.fetch_add(1, std::memory_order_relaxed) + 1 < kOften) return;
    const int64_t pause = pause_.load(std::memory_order_relaxed);
    pause_ends_.store((now + std::chrono::seconds(pause)).time_since_epoch().count(), std::memory_order_relaxed);
    pause_.store(std::min(2 * pause, kLongest), std::memory_order_relaxed);
    slow_in_a_row_.store(0, std::memory_order_relaxed);
  }

  LargeOutput(const LargeOutput&) = delete;
  LargeOutput& operator=(const LargeOutput&) = delete;

 private:
  static inline std::atomic<std::chrono::steady_clock::rep> pause_ends_{
      std::chrono::steady_clock::time_point::min().time_since_epoch().count()};
  static inline std::atomic<int> slow_in_a_row_{0};
  static inline std::atomic<int64_t> pause_{1};  // seconds
  std::chrono::steady_clock::time_point began_;
  int64_t watched_bytes_ = 0;
};

}  // namespace gelu_ext::cpu
