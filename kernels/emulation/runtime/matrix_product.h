// The matrix product of one warp, as mma_f16 of port.cuh.
#pragma once

#include "types.h"

namespace emulation {

// What one lane gives and gets.
struct ProductFragment {
  uint32 a[4];
  uint32 b[2];
  float d[4];
};

// How the sums are added up. Real matrix units differ in order and in the last bits and cut off
// what is below them, and what is decided from the sums must not depend on it.
enum class ProductSums {
  in_order_rounded,  // k ascending, each addition rounded to nearest
  reversed_cut,      // k descending, each addition cut off towards zero
  v100,              // as the matrix units of these GPUs, some products at once
  a100,
  h100,
};

// The kind that a launch of this seed has.
ProductSums product_sums(uint32 seed);

void matrix_product(ProductFragment* const (&lanes)[warp_size], ProductSums sums);

}  // namespace emulation
