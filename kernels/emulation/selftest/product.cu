// One matrix product of one warp, fragments as they are given.
#include "port.cuh"

struct Product {  // parameters
  const uint32* a;  // IN    (32, 4) pairs of float16, by lane
  const uint32* b;  // IN    (32, 2)
  float* d;         // INOUT (32, 4)
};

template <bool onto>
__device__ void multiply(const Product& p) {
  const uint32 lane = threadIdx.x;
  const uint32 a[4] = {p.a[4 * lane], p.a[4 * lane + 1], p.a[4 * lane + 2], p.a[4 * lane + 3]};
  const uint32 b[2] = {p.b[2 * lane], p.b[2 * lane + 1]};
  const float c[4] = {p.d[4 * lane], p.d[4 * lane + 1], p.d[4 * lane + 2], p.d[4 * lane + 3]};
  float d[4] = {c[0], c[1], c[2], c[3]};
  if (onto) {
    saec::mma_f16(d, a, b[0], b[1]);
  } else {
    saec::mma_f16(d, a, b[0], b[1], c);
  }
  for (int i = 0; i < 4; i++) p.d[4 * lane + i] = d[i];
}

#define PRODUCT(name, body)                                                 \
  SAEC_KERNEL void __launch_bounds__(32) name(const Product p) { body(p); } \
  SAEC_EXPORT(name)

#ifndef SAEC_ONE_KERNEL
PRODUCT(product_onto, multiply<true>)
PRODUCT(product_and_sum, multiply<false>)
#endif
