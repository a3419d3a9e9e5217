// Where a problem runs: the ten lines that know both devices.
#pragma once

#include "kernels.h"
#include "ops.h"

namespace gelu_ext {

// RuntimeError for a device that this build has no kernels for.
void check_device(const char* op, const Tensor& x);

// Runs the problem on the device of `x`, on its current stream.
void run(const char* op, const BiasActForward&, const Tensor& x);
void run(const char* op, const BiasActBackward&, const Tensor& x);
void run(const char* op, const GatedActForward&, const Tensor& x);
void run(const char* op, const GatedActBackward&, const Tensor& x);

}  // namespace gelu_ext
