// How the launchers would launch a problem: reads lines `backward gated dtype rows cols bias multiprocessors
// architecture` of numbers, writes for each `rows lanes tiles chunks blocks unroll piece launches`: those of the first
// launch, what its tuning holds on a multiprocessor and loads together, the bytes that are accessed together, and how
// many launches there are. Compiled with csrc/cuda/launch.cu by launch_model.py.
#include <cstdio>

#include "cuda/launch.cuh"

namespace {

using namespace gelu_ext;
using namespace gelu_ext::cuda;

const char* const kAligned = reinterpret_cast<const char*>(uintptr_t{1} << 12);

template <class AnyProblem, class TuningOf>
void print(AnyProblem p, bool gated, int dtype, bool bias, bool sums, const Device& device, TuningOf tuning_of) {
  p.operation = gated ? Operations::index<ActMul>() : Operations::index<BiasAct>();
  p.dtype = static_cast<DType>(dtype);
  for_each_matrix(p, [&](auto& m, int step) { m = {const_cast<char*>(kAligned), p.cols * step}; });
  for (int j = 0; j < p.vectors() && bias; ++j) p.vector[j] = {kAligned, p.dtype};
  int launches = 0;
  for_each_part(p, sums, [&](const AnyProblem& part) {
    const Tuning tuning = tuning_of(part);
    const LaunchShape shape = launch_shape(part, tuning, sums, device);
    const Input matrix[] = {Input(part.x[0], part.dtype, shape)};
    if (launches++ == 0) {
      std::printf("%lld %d %lld %d %d %d %d ", static_cast<long long>(part.rows), shape.lanes,
                  static_cast<long long>(shape.tiles), shape.chunks, resident_blocks(tuning, device.architecture),
                  tuning.unroll, piece_bytes(part, Passes(part.rows, shape), matrix));
    }
    return 0;
  });
  std::printf("%d\n", launches);
}

}  // namespace

int main() {
  int backward, gated, dtype, bias;
  long long rows, cols;
  Device device;
  while (std::scanf("%d %d %d %lld %lld %d %d %d", &backward, &gated, &dtype, &rows, &cols, &bias,
                    &device.multiprocessors, &device.architecture) == 8) {
    if (backward) {
      Backward p{};
      p.rows = rows, p.cols = cols;
      print(p, gated, dtype, bias, bias, device, [&](const Backward& part) {
        return backward_tuning(sizes_of(part), bias ? Wanted::matrices_and_sums : Wanted::matrices, part.dtype,
                               device.architecture);
      });
    } else {
      Forward p{};
      p.rows = rows, p.cols = cols;
      print(p, gated, dtype, bias, false, device,
            [&](const Forward& part) { return forward_tuning(sizes_of(part), part.dtype, device.architecture); });
    }
  }
  return 0;
}
