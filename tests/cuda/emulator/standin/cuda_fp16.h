#include "cuda_types.h"
