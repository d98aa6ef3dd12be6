#define AF_AVX2
#include "kernels_impl.h"
