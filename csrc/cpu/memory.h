// Page faults are most of the cost of a large fresh output: ask for huge pages before the first touch. They take an
// eighth of the time where the memory was in use a moment ago. Where it lay idle and the machine is a virtual one that
// gives idle memory back to its host, they take six times as long instead: whoever knows that the memory will not come
// from a call just before does not ask (Node in ops.h).
#pragma once

#include "../kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace gelu_ext::cpu {

// Advice only: harmless where the memory has been touched before or the system has no huge pages.
inline void expect_large(const Matrix& out, DType dtype, int64_t rows, int64_t cols) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kWorthwhile = 2 << 20;
  const int64_t width = rows == 1 ? cols : out.row_stride;
  const uintptr_t bytes = static_cast<uintptr_t>(rows * width) * size_of(dtype);
  if (out.data == nullptr || bytes < kWorthwhile) return;
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(out.data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(out.data) + bytes) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)out, (void)dtype, (void)rows, (void)cols;
#endif
}

}  // namespace gelu_ext::cpu
