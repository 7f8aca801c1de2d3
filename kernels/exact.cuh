// exact.cuh - the definition: distances in float64, every operation rounded on its own.
#pragma once
#include "fields.cuh"

namespace saec {

// Σ_j (f64(x_j) - f64(c_j))², j ascending.
template <class ROW>
__device__ __forceinline__ double exact_distance(const void* values, int64 row, const float* words,
                                                 int64 word, int32 dim) {
  double total = 0.0;
  for (int32 j = 0; j < dim; j++) {
    const double x = widened(ROW::value(values, row + j));
    const double difference = sub_rn(x, widened(load_cached(words + word + j)));
    total = add_rn(total, mul_rn(difference, difference));
  }
  return total;
}

// The codeword of least distance, ties to the lower index, found by a whole warp. A lane without a
// codeword keeps infinity and UNPROVED.
template <class ROW>
__device__ __forceinline__ uint32 exact_code(const void* values, int64 row, const float* words,
                                             const Field& field, int32 lane) {
  double least = __longlong_as_double(0x7FF0000000000000ll);
  uint32 code = UNPROVED;
  for (int32 k = lane; k < field.codewords; k += WARP) {
    const int64 word = field.word + int64(k) * field.dim;
    const double distance = exact_distance<ROW>(values, row, words, word, field.dim);
    if (distance < least) {
      least = distance;
      code = uint32(k);
    }
  }
  for (int32 apart = WARP / 2; apart > 0; apart /= 2) {
    const double other = __shfl_xor_sync(FULL_WARP, least, apart);
    const uint32 its_code = __shfl_xor_sync(FULL_WARP, code, apart);
    if (other < least || (other == least && its_code < code)) {
      least = other;
      code = its_code;
    }
  }
  return code;
}

}  // namespace saec
