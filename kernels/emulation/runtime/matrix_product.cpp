#include "matrix_product.h"

#include <algorithm>
#include <cmath>
#include <limits>

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

// Cut off to float32's 24 bits.
float cut(double value) {
  constexpr uint64 dropped = (1ull << 29) - 1;
  return static_cast<float>(same_bits<double>(same_bits<uint64>(value) & ~dropped));
}

void add_in_order(Operands& operands) {
  for (int k = 0; k < depth; k++) {
    for (int row = 0; row < rows; row++) {
      for (int column = 0; column < columns; column++) {
        // A product of two float16 is exact in float32.
        operands.d[row][column] += operands.a[row][k] * operands.b[k][column];
      }
    }
  }
}

void add_reversed(Operands& operands) {
  for (int k = depth - 1; k >= 0; k--) {
    for (int row = 0; row < rows; row++) {
      for (int column = 0; column < columns; column++) {
        const float product = operands.a[row][k] * operands.b[k][column];
        float& sum = operands.d[row][column];
        // float64 has the first 24 bits of the sum, but where one is far below the other's last.
        sum = cut(static_cast<double>(sum) + static_cast<double>(product));
      }
    }
  }
}

// A unit adds `width` products and the sum so far at once, aligned to the greatest exponent among
// them and cut off `extra_bits` below float32's last bit; their sum is cut to float32. Figures and
// model: Khattak and Mikaitis, github.com/north-numerical-computing/MATLAB-tensor-core.
struct MatrixUnit {
  int width;
  int extra_bits;
};

constexpr MatrixUnit unit_of_v100 = {4, 0};
constexpr MatrixUnit unit_of_a100 = {8, 1};
constexpr MatrixUnit unit_of_h100 = {16, 2};

// Magnitudes whose products have the exponents that a unit aligns to: it does not normalise
// subnormal float16, so that these count as the least normal number.
struct Magnitudes {
  float a[rows][depth];
  float b[depth][columns];
};

float aligned_magnitude(float value) {
  constexpr float least_normal = 0x1p-14f;
  const float magnitude = std::fabs(value);
  const bool subnormal = magnitude > 0 && magnitude < least_normal;
  return subnormal ? least_normal : magnitude;
}

Magnitudes magnitudes_of(const Operands& operands) {
  Magnitudes magnitudes;
  for (int k = 0; k < depth; k++) {
    for (int row = 0; row < rows; row++) {
      magnitudes.a[row][k] = aligned_magnitude(operands.a[row][k]);
    }
    for (int column = 0; column < columns; column++) {
      magnitudes.b[k][column] = aligned_magnitude(operands.b[k][column]);
    }
  }
  return magnitudes;
}

// Loops run over columns innermost, without branches: the compiler makes vectors of them.
void add_at_once(Operands& operands, const Magnitudes& magnitudes, int row, int first,
                 MatrixUnit unit) {
  float (&sums)[columns] = operands.d[row];
  float plain[columns];
  float greatest[columns] = {};
  std::copy(sums, sums + columns, plain);
  for (int k = first; k < first + unit.width; k++) {
    for (int column = 0; column < columns; column++) {
      const float magnitude = magnitudes.a[row][k] * magnitudes.b[k][column];
      greatest[column] = magnitude > greatest[column] ? magnitude : greatest[column];
      plain[column] += operands.a[row][k] * operands.b[k][column];
    }
  }

  // Addends become whole numbers of the least bit that is kept. All are below 2^26 and there are
  // 17 at most, so that int32 holds their sum.
  const float bits_below = std::ldexp(1.0f, 23 + unit.extra_bits);
  constexpr uint32 exponent_bits = 0x7F800000u;
  float least_bit[columns];
  float per_least_bit[columns];
  bool is_plain[columns];
  int32 total[columns];
  for (int column = 0; column < columns; column++) {
    // Nothing but zeros is added, or an infinity or NaN is among the addends: any order gives the
    // same. Finite addends never give one here: products are too small beside the largest float32.
    is_plain[column] =
        !(greatest[column] > 0) || !(std::fabs(plain[column]) <= std::numeric_limits<float>::max());
    const float most = std::max(greatest[column], std::fabs(sums[column]));
    const float power = same_bits<float>(same_bits<uint32>(most) & exponent_bits);
    least_bit[column] = power / bits_below;
    per_least_bit[column] = bits_below / power;
    const float scaled = sums[column] * per_least_bit[column];
    total[column] = static_cast<int32>(is_plain[column] ? 0.0f : scaled);
  }
  for (int k = first; k < first + unit.width; k++) {
    for (int column = 0; column < columns; column++) {
      const float product = operands.a[row][k] * operands.b[k][column];
      const float scaled = product * per_least_bit[column];
      total[column] += static_cast<int32>(is_plain[column] ? 0.0f : scaled);
    }
  }
  for (int column = 0; column < columns; column++) {
    const float sum = cut(total[column]) * least_bit[column];
    sums[column] = is_plain[column] ? plain[column] : sum;
  }
}

void add_as(MatrixUnit unit, Operands& operands) {
  const Magnitudes magnitudes = magnitudes_of(operands);
  for (int row = 0; row < rows; row++) {
    for (int first = 0; first < depth; first += unit.width) {
      add_at_once(operands, magnitudes, row, first, unit);
    }
  }
}

}  // namespace

ProductSums product_sums(uint32 seed) {
  constexpr ProductSums by_turns[] = {ProductSums::in_order_rounded,
                                      ProductSums::reversed_cut,
                                      ProductSums::a100,
                                      ProductSums::h100,
                                      ProductSums::in_order_rounded,
                                      ProductSums::v100};
  return by_turns[seed % 6];
}

void matrix_product(ProductFragment* const (&lanes)[warp_size], ProductSums sums) {
  Operands operands;
  gather(lanes, operands);
  switch (sums) {
    case ProductSums::in_order_rounded:
      add_in_order(operands);
      break;
    case ProductSums::reversed_cut:
      add_reversed(operands);
      break;
    case ProductSums::v100:
      add_as(unit_of_v100, operands);
      break;
    case ProductSums::a100:
      add_as(unit_of_a100, operands);
      break;
    case ProductSums::h100:
      add_as(unit_of_h100, operands);
      break;
  }
  scatter(operands, lanes);
}

}  // namespace emulation
