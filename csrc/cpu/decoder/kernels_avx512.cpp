#define AF_AVX512
#include "kernels_impl.h"
