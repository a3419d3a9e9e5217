// Huge pages for large outputs. Writing a fresh output of some megabytes costs more in page faults than in arithmetic,
// and asking for pages of 2 MB before the first write makes that about eight times cheaper. But on a virtual machine
// that gives idle memory back to its host, memory that lay idle costs six times more by huge pages than by small ones.
// Hence the rule: after 12 slow calls in a row nobody asks for 1 s, and each further such run doubles the pause, up to
// 64 s.
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

// Lives while the outputs of a call are computed. Advice only: harmless where the memory has been touched before or the
// system has no huge pages.
class HugePages {
 public:
  explicit HugePages(const Problem& p) : p_(p) {}
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;

  void advise([[maybe_unused]] const Matrix& out) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kWorthwhile = 2 << 20;
    const int64_t width = p_.rows == 1 ? p_.cols : out.row_stride;
    const uintptr_t bytes = static_cast<uintptr_t>(p_.rows * width) * size_of(p_.dtype);
    if (out.data == nullptr || bytes < kWorthwhile) return;
    if (bytes_ == 0) began_ = Clock::now();
    if (began_.time_since_epoch().count() < pause_ends_.load(std::memory_order_relaxed)) return;
    static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(out.data) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(out.data) + bytes) / page * page;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
    bytes_ += static_cast<int64_t>(bytes);
#endif
  }

  ~HugePages() {
    // Small pages take a third of a nanosecond a byte, the arithmetic no more; float64 is slow of itself.
    constexpr std::chrono::nanoseconds kSlowByte{1};
    constexpr int kOften = 12;  // up to nine calls were seen to wake what was idle
    constexpr int64_t kLongest = 64;
    if (bytes_ == 0 || p_.dtype == DType::float64) return;
    const auto now = Clock::now();
    if (now - began_ < bytes_ * kSlowByte) {
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

 private:
  using Clock = std::chrono::steady_clock;

  static inline std::atomic<Clock::rep> pause_ends_{Clock::time_point::min().time_since_epoch().count()};
  static inline std::atomic<int> slow_in_a_row_{0};
  static inline std::atomic<int64_t> pause_{1};  // seconds
  const Problem& p_;
  Clock::time_point began_;
  int64_t bytes_ = 0;  // of the outputs that huge pages were asked for
};

}  // namespace gelu_ext::cpu
