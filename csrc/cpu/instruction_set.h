// The row loops of one instruction set as a table of functions, and the choice among them at run time.
// Knows the waist and nothing of threads: a loop works on one tile of rows and columns.
#pragma once

#include "../kernels.h"

namespace gelu_ext::cpu {

struct Tile {
  int64_t row_begin, row_end, col_begin, col_end;
};

// Everything per-column is handed in the arithmetic type of the problem (double for float64, else float), one of each
// for every vector of the operation: its numbers, [cols], or null; and sums, [cols], that a tile's rows are added to,
// or null.
struct InstructionSet {
  const char* name;
  bool (*available)();
  void (*forward)(const Forward&, const void* const vectors[], const Tile&);
  void (*backward)(const Backward&, const void* const vectors[], void* const sums[], const Tile&);
  // dst[i] = vector[i] in the arithmetic type of `arithmetic`
  void (*widen)(DType arithmetic, const ConstVector& vector, void* dst, int64_t n);
  // dst[i] = rows[0][i] + rows[1][i] + ..., from column `first` on, added in this order as doubles, rounded once
  void (*add_rows)(DType arithmetic, const void* rows, int64_t count, int64_t cols, const Vector& dst, int64_t first,
                   int64_t n);
};

// Defined by the file of each instruction set; null where the compiler cannot make it.
const InstructionSet* baseline_set();
const InstructionSet* avx2_set();
const InstructionSet* avx512_set();
const InstructionSet* avx512_bf16_set();

// The set in use: GELU_EXT_CPU_ISA by name, else the best available. Throws std::runtime_error for a name that is not
// available.
const InstructionSet& chosen_set();

}  // namespace gelu_ext::cpu
