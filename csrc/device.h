// Where a problem runs: the one place that knows both devices.
#pragma once

#include "kernels.h"
#include "ops.h"

namespace gelu_ext {

// RuntimeError for a device that this build has no kernels for.
void check_device(const char* op, const Tensor& x);

// Runs the problem on the device of `x`, on its current stream.
void run(const char* op, const Forward&, const Tensor& x);
void run(const char* op, const Backward&, const Tensor& x);

}  // namespace gelu_ext
