// Host side of the CUDA kernels: the rule for launch shapes, and what the build says about itself.
//
// GELU_EXT_CUDA_LAUNCH overrides the rule, for tuning without recompilation. It is read once in a process, at the first
// launch, and holds any of, separated by commas:
//   lanes=32    threads of a block along a row, a power of two up to 256
//   chunks=64   blocks down the rows
//   waves=4     limit on blocks, in multiples of what the device holds at once
//   passes=16   rows that each thread gets at least before there is more than one wave
#include "launch.cuh"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

namespace gelu_ext::cuda {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Override {
  int lanes = 0, chunks = 0, waves = 0, passes = 0;  // 0: by the rule

  static const Override& get() {
    static const Override value = parse(std::getenv("GELU_EXT_CUDA_LAUNCH"));
    return value;
  }

  static Override parse(const char* text) {
    Override result;
    const auto number = [text](const char* key) {
      const char* found = text == nullptr ? nullptr : std::strstr(text, key);
      return found == nullptr ? 0 : std::clamp(std::atoi(found + std::strlen(key)), 0, 65535);
    };
    result.lanes = number("lanes=");
    if (result.lanes > kThreads || (result.lanes & (result.lanes - 1)) != 0) result.lanes = 0;
    result.chunks = number("chunks=");
    result.waves = number("waves=");
    result.passes = number("passes=");
    return result;
  }
};

// Threads along a row of `words` thread-loads. 32 lanes read 512 bytes at once; down to 8, whole cache lines, they may
// be fewer where that leaves fewer lanes idle at the row's end. Fewer still only where the row is that short, and more
// only where there are too few rows for the block.
int choose_lanes(int64_t rows, int64_t words) {
  int lanes = 1;
  while (lanes < 32 && lanes < words) lanes *= 2;
  for (int fewer = lanes / 2; fewer >= 8; fewer /= 2) {
    if (divide_up(words, fewer) * fewer * 16 < divide_up(words, lanes) * lanes * 15) lanes = fewer;
  }
  while (lanes < kThreads && lanes < words && kThreads / lanes / 2 >= rows) lanes *= 2;
  return lanes;
}

// Blocks down the rows: what the device holds at once (a wave) as long as every thread gets a row, and whole multiples
// of it, which even out, where each thread still has rows enough to pay for its start. With `sums` every chunk costs a
// row of partial sums, 8 bytes written and read a column, so that there are two waves at most, and one where few
// columns leave few threads for the second step.
int choose_chunks(int64_t row_groups, int64_t tiles, int64_t wave, bool sums, const Override& forced) {
  constexpr int64_t kMostSummed = 512;
  const int64_t passes = forced.passes > 0 ? forced.passes : 16, one_wave = std::max<int64_t>(1, wave / tiles);
  const int64_t most = forced.waves > 0 ? forced.waves : !sums ? 4 : one_wave <= kMostSummed / 2 ? 2 : 1;
  const int64_t waves = std::clamp<int64_t>(row_groups / (one_wave * passes), 1, most);
  return static_cast<int>(std::clamp<int64_t>(waves * wave / tiles, 1, std::min<int64_t>(row_groups, 65535)));
}

}  // namespace

LaunchShape launch_shape(const Problem& p, Tuning tuning, bool sums, const Device& device) {
  const Override& forced = Override::get();
  const int64_t words = divide_up(p.cols, elements_per_thread(p.dtype));
  LaunchShape shape;
  shape.lanes = forced.lanes > 0 ? forced.lanes : choose_lanes(p.rows, words);
  shape.tiles = divide_up(words, shape.lanes);
  const int64_t row_groups = divide_up(p.rows, kThreads / shape.lanes);
  const int64_t wave = static_cast<int64_t>(device.multiprocessors) * resident_blocks(tuning, device.architecture);
  shape.chunks = choose_chunks(row_groups, shape.tiles, wave, sums, forced);
  if (forced.chunks > 0) shape.chunks = static_cast<int>(std::min<int64_t>(forced.chunks, row_groups));
  return shape;
}

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// The builder may say it in its own words; else it is what nvcc generates code for (not whether PTX is among it).
const char* architectures() {
#if defined(GELU_EXT_CUDA_ARCHITECTURES)
  return GELU_EXT_CUDA_ARCHITECTURES;
#elif defined(__CUDA_ARCH_LIST__)
  static const std::string list = [] {
    std::string text;
    for (const int arch : {__CUDA_ARCH_LIST__}) text += (text.empty() ? "" : " ") + std::to_string(arch / 10);
    return text;
  }();
  return list.c_str();
#else
  return "emulated";
#endif
}

}  // namespace gelu_ext::cuda
