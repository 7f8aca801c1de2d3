// make_rows - rows of a Gaussian mixture, made where they are needed: gigabytes in milliseconds.
//   x = clamp(gain · (mean of the row's component + sigma · N) + offset), |x| <= limit
//   gain = exp(heavy · N) of each row. With `crowd`, rows whose number is no multiple of it all belong
//   to component 0 and lie near it, so that one codeword gets nearly all rows.
// launch  grid = any, block = any; shared = 0; threads take values in turn
// in      means edges first_row n_rows sigma offset heavy limit seed dim components crowd
// out     values
// numeric none: rows are what they are; their draws follow from seed, row and column
// cost    2 hashes, a logarithm and a cosine a value
#include "fields.cuh"

namespace saec {

struct MakeRows {       // parameters
  const float* means;   // IN  (components, dim)
  const float* edges;   // IN  (components) cumulative shares, the last one 1
  void* values;         // OUT (n_rows, dim)
  int64 first_row;      // IN  number of the first row, for what it draws
  int64 n_rows;         // IN
  float sigma;          // IN  of rows around their mean
  float offset;         // IN  added to every value
  float heavy;          // IN  sigma of the logarithm of a row's gain
  float limit;          // IN  greatest magnitude
  int32 seed;           // IN
  int32 dim;            // IN
  int32 components;     // IN
  int32 crowd;          // IN  0, or one row in so many lies elsewhere than the crowd
};

// The finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
__device__ __forceinline__ uint64 hashed(uint64 x) {
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9ull;
  x ^= x >> 27;
  x *= 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// In (0, 1], 24 bits.
__device__ __forceinline__ float uniform(uint32 bits) { return float((bits >> 8) + 1) * 0x1p-24f; }

__device__ __forceinline__ float normal(uint64 bits) {
  const float radius = sqrtf(-2.0f * logf(uniform(uint32(bits))));
  return radius * cosf(6.2831853f * uniform(uint32(bits >> 32)));
}

__device__ __forceinline__ void put(float* at, float value) { *at = value; }
__device__ __forceinline__ void put(uint16* at, float value) { *at = f16_bits(value); }

template <class T>
__device__ __forceinline__ void make_rows(const MakeRows& p) {
  T* const values = static_cast<T*>(p.values);
  const int64 step = int64(gridDim.x) * blockDim.x;
  for (int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x; i < p.n_rows * p.dim; i += step) {
    const int64 row = p.first_row + i / p.dim;
    const int32 column = int32(i % p.dim);
    const uint64 of_row = hashed(uint64(row) * 0x9E3779B97F4A7C15ull + uint64(uint32(p.seed)));
    float sigma = p.sigma;
    int32 component = 0;
    if (p.crowd > 0 && row % p.crowd != 0) {
      sigma *= 0x1p-4f;
    } else {
      const float drawn = uniform(uint32(of_row));
      int32 last = p.components - 1;
      while (component < last) {
        const int32 middle = (component + last) / 2;
        if (p.edges[middle] < drawn) {
          component = middle + 1;
        } else {
          last = middle;
        }
      }
    }
    const float gain = p.heavy > 0.0f ? expf(p.heavy * normal(hashed(of_row + 1))) : 1.0f;
    const float own = sigma * normal(hashed(of_row ^ hashed(uint64(column) + 2)));
    const float x = gain * (p.means[int64(component) * p.dim + column] + own) + p.offset;
    put(values + i, fminf(fmaxf(x, -p.limit), p.limit));
  }
}

}  // namespace saec

#define MAKE_ROWS(NAME, T)                               \
  SAEC_KERNEL void NAME(const saec::MakeRows p) {        \
    saec::make_rows<T>(p);                               \
  }                                                      \
  SAEC_EXPORT(NAME)

#ifndef SAEC_ONE_KERNEL
MAKE_ROWS(make_rows_f32, float)
MAKE_ROWS(make_rows_f16, uint16)
#endif
