#include "matrix_product.h"

#include <cstring>

#include "conversions.h"

namespace emulation {
namespace {

constexpr int rows = 16;
constexpr int columns = 8;
constexpr int depth = 16;

struct Operands {
  float a[rows][depth];
  float b[depth][columns];
  float d[rows][columns];
};

float half_of(uint32 pair, int which) {
  return f16_value(static_cast<uint16>(pair >> (16 * which)));
}

// PTX ISA, mma.m16n8k16 of .f16: a lane is g = lane / 4 and t = lane % 4.
int row_of(int lane, int word) { return lane / 4 + 8 * (word % 2); }
int depth_of(int lane, int word, int half) { return 2 * (lane % 4) + 8 * word + half; }
int column_of(int lane, int half) { return 2 * (lane % 4) + half; }

void gather(ProductFragment* const (&lanes)[warp_size], Operands& operands) {
  for (int lane = 0; lane < static_cast<int>(warp_size); lane++) {
    const ProductFragment& fragment = *lanes[lane];
    for (int half = 0; half < 2; half++) {
      for (int word = 0; word < 4; word++) {
        operands.a[row_of(lane, word)][depth_of(lane, word / 2, half)] =
            half_of(fragment.a[word], half);
      }
      for (int word = 0; word < 2; word++) {
        operands.b[depth_of(lane, word, half)][lane / 4] = half_of(fragment.b[word], half);
        operands.d[row_of(lane, word)][column_of(lane, half)] = fragment.d[2 * word + half];
      }
    }
  }
}

void scatter(const Operands& operands, ProductFragment* const (&lanes)[warp_size]) {
  for (int lane = 0; lane < static_cast<int>(warp_size); lane++) {
    for (int half = 0; half < 2; half++) {
      for (int word = 0; word < 2; word++) {
        lanes[lane]->d[2 * word + half] = operands.d[row_of(lane, word)][column_of(lane, half)];
      }
    }
  }
}

// Cut off to float32's 24 bits. The sum of two float32 in float64 has these exactly, but where the
// smaller is far below the last of them.
float cut(double value) {
  uint64 bits;
  memcpy(&bits, &value, sizeof bits);
  bits &= ~((1ull << 29) - 1);
  memcpy(&value, &bits, sizeof bits);
  return static_cast<float>(value);
}

}  // namespace

void matrix_product(ProductFragment* const (&lanes)[warp_size], ProductSums sums) {
  Operands operands;
  gather(lanes, operands);
  for (int step = 0; step < depth; step++) {
    const int k = sums == ProductSums::in_order_rounded ? step : depth - 1 - step;
    for (int row = 0; row < rows; row++) {
      for (int column = 0; column < columns; column++) {
        float& sum = operands.d[row][column];
        // A product of two float16 is exact in float32.
        const float product = operands.a[row][k] * operands.b[k][column];
        if (sums == ProductSums::in_order_rounded) {
          sum += product;
        } else {
          sum = cut(static_cast<double>(sum) + static_cast<double>(product));
        }
      }
    }
  }
  scatter(operands, lanes);
}

}  // namespace emulation
