// The nearest codeword of each row, as the project's kernels do it: tiles in shared memory, float16
// products of a warp, the least key by shuffles. Whole numbers make every sum exact, so there is
// one right answer whatever the order of additions. Each mistake is one that this kind of kernel
// invites.
#include "port.cuh"

struct Nearest {  // parameters
  const float* rows;   // IN  (n_rows, dim)
  const float* words;  // IN  (n_words, dim)
  int32 n_rows;
  int32 n_words;
  int32 dim;
  uint32* codes;  // OUT (n_rows,)
  float* keys;    // OUT (n_rows,) |c|² − 2 x·c
};

enum class Mistake {
  none,
  unsynced_fill,   // tiles are read before all of them are written
  unsynced_reuse,  // tiles are written again before all have read them
  past_words,      // reads codewords behind the last
  past_tile,       // clears the gaps of more lines than a tile has
};

constexpr int tile = 64;   // rows, and codewords, of a tile
constexpr int depth = 32;  // dims of a tile
constexpr int pitch = 40;  // halves from one line of a tile to the next, against bank conflicts
constexpr int threads = 128;

__device__ float square_norm(const float* word, int dim) {
  float sum = 0.0f;
  for (int i = 0; i < dim; i++) sum += word[i] * word[i];
  return sum;
}

__device__ uint32 word_at(const uint16* halves) { return *reinterpret_cast<const uint32*>(halves); }

template <Mistake mistake>
__device__ void nearest_word(const Nearest& p) {
  SAEC_STATIC_SHARED(uint16, row_tile, [tile * pitch]);
  SAEC_STATIC_SHARED(uint16, word_tile, [tile * pitch]);
  SAEC_STATIC_SHARED(float, norms, [tile]);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int group = lane / 4;
  const int within = lane % 4;
  const int warp_row = thread / 32 * 16;
  const int first_row = static_cast<int>(blockIdx.x) * tile;

  float best[2] = {INFINITY, INFINITY};
  uint32 code[2] = {~0u, ~0u};
  for (int first_word = 0; first_word < p.n_words; first_word += tile) {
    float products[tile / 8][4] = {};
    for (int i = thread; i < tile; i += threads) {
      const int word = first_word + i;
      norms[i] = word < p.n_words ? square_norm(p.words + word * p.dim, p.dim) : 0.0f;
    }
    for (int first_dim = 0; first_dim < p.dim; first_dim += depth) {
      if (mistake != Mistake::unsynced_reuse) __syncthreads();
      for (int i = thread; i < tile * depth; i += threads) {
        const int line = i / depth;
        const int dim = first_dim + i % depth;
        const int row = first_row + line;
        const int word = first_word + line;
        const bool row_there = row < p.n_rows && dim < p.dim;
        const bool word_there = mistake == Mistake::past_words || (word < p.n_words && dim < p.dim);
        const int at = line * pitch + i % depth;
        row_tile[at] = saec::f16_bits(row_there ? p.rows[row * p.dim + dim] : 0.0f);
        word_tile[at] = saec::f16_bits(word_there ? p.words[word * p.dim + dim] : 0.0f);
      }
      if (mistake == Mistake::past_tile || thread < tile) word_tile[thread * pitch + depth] = 0;
      if (mistake != Mistake::unsynced_fill) __syncthreads();
      for (int step = 0; step < depth; step += 16) {
        const uint16* a_line = row_tile + (warp_row + group) * pitch + step + 2 * within;
        const uint32 a[4] = {word_at(a_line), word_at(a_line + 8 * pitch), word_at(a_line + 8),
                             word_at(a_line + 8 * pitch + 8)};
#pragma unroll
        for (int column = 0; column < tile / 8; column++) {
          const uint16* b_line = word_tile + (8 * column + group) * pitch + step + 2 * within;
          saec::mma_f16(products[column], a, word_at(b_line), word_at(b_line + 8));
        }
      }
    }
    for (int column = 0; column < tile / 8; column++) {
      for (int i = 0; i < 4; i++) {
        const int word = 8 * column + 2 * within + i % 2;
        const float key = norms[word] - 2.0f * products[column][i];
        const uint32 candidate = static_cast<uint32>(first_word + word);
        if (first_word + word < p.n_words && key < best[i / 2]) {
          best[i / 2] = key;
          code[i / 2] = candidate;
        }
      }
    }
    __syncthreads();
  }

  for (int half = 0; half < 2; half++) {
    for (int distance = 1; distance < 4; distance *= 2) {
      const float other = __shfl_xor_sync(0xFFFFFFFFu, best[half], distance);
      const uint32 other_code = __shfl_xor_sync(0xFFFFFFFFu, code[half], distance);
      const bool lower = other == best[half] && other_code < code[half];
      if (other < best[half] || lower) {
        best[half] = other;
        code[half] = other_code;
      }
    }
    const int row = first_row + warp_row + group + 8 * half;
    if (within == 0 && row < p.n_rows) {
      p.codes[row] = code[half];
      p.keys[row] = best[half];
    }
  }
}

#define NEAREST(name, mistake)                                                                    \
  SAEC_KERNEL void __launch_bounds__(threads) name(const Nearest p) { nearest_word<mistake>(p); } \
  SAEC_EXPORT(name)

#ifndef SAEC_ONE_KERNEL
NEAREST(nearest, Mistake::none)
NEAREST(nearest_unsynced_fill, Mistake::unsynced_fill)
NEAREST(nearest_unsynced_reuse, Mistake::unsynced_reuse)
NEAREST(nearest_past_words, Mistake::past_words)
NEAREST(nearest_past_tile, Mistake::past_tile)
#endif
