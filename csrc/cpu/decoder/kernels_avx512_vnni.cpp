#define AF_AVX512
#define AF_VNNI
#include "kernels_impl.h"
