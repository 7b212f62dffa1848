// Many rows of activations (a prompt), rounded to bf16, on processors whose tile registers multiply that.
//
// 32 rows of the weight are read at their level and rounded to bf16 once; then tiles of 16 rows of activations, in bf16 too,
// pass over them, and sums are kept in fp32 over all columns. Exact integer sums (tiles.h) would have to leave the tiles and
// be scaled after every group, which takes more than twice as long. The caller must allow the rounding; README.md has the error.

#pragma once

#include <vector>
#include "encode.h"
#include "many_rows.h"
#include "tiles.h"

namespace {

#if defined(TAP_TILES) && defined(__AMX_BF16__) && defined(__AVX512BF16__)

constexpr int kPairRows = 16;            // rows of activations in a tile
constexpr int64_t kPairColumns = 32;     // columns in a tile, two beside each other
constexpr int64_t kTileNumbers = kPairRows * kPairColumns;
constexpr int64_t kChunkTiles = 11;      // of columns: as many of the weight stay in the first-level cache while rows pass
constexpr int64_t kAheadTiles = 1;       // of columns: activations come from the second-level cache

constexpr bool kHasPrompts = true;
bool takes_prompts(const Call& call) {
  return call.may_round && call.n_rows > kMaxRows && is_wide(call.group_size) && has_tiles();
}

// All eight registers hold 16 rows of 64 bytes.
class FullTiles {
 public:
  FullTiles() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {0};
      uint16_t row_bytes[16] = {0};
      uint8_t rows[16] = {0};
    } shapes;
    for (int i = 0; i < 8; ++i) shapes.rows[i] = 16, shapes.row_bytes[i] = 64;
    _tile_loadconfig(&shapes);
  }
  ~FullTiles() { _tile_release(); }
  FullTiles(const FullTiles&) = delete;
  FullTiles& operator=(const FullTiles&) = delete;
};

// Activations in bf16. Of 32 rows, two tiles of 16 rows for each 32 columns; what is missing of a tile is zeros. An infinity
// becomes a NaN: its row is lost anyway.
void encode_prompt(const Call& call, Rows& rows) {
  const int64_t columns = call.groups * call.group_size;
  const int64_t padded_rows = (call.n_rows + 2 * kPairRows - 1) / (2 * kPairRows) * 2 * kPairRows;
  rows.halves.resize(static_cast<size_t>(padded_rows * columns / kPairColumns));
  constexpr int kInfinities = 0x08 | 0x10;  // of either sign
  for (int64_t row = 0; row < padded_rows; ++row) {
    uint16_t* tile = rows.halves.data()->at + row / 32 * 32 * columns + row / 16 % 2 * kTileNumbers + row % 16 * kPairColumns;
    const bool is_there = row < call.n_rows;
    for (int64_t k = 0; k < columns; k += kPairColumns, tile += 2 * kTileNumbers)
      for (int64_t part = 0; part < kPairColumns; part += 16) {
        const int64_t n = is_there ? std::max<int64_t>(0, std::min<int64_t>(16, call.cols - k - part)) : 0;
        const __mmask16 there = static_cast<__mmask16>((1u << n) - 1);
        const int64_t at = row * call.cols + k + part;
        if (call.x_dtype == kBFloat16) {
          const __m256i half = _mm256_maskz_loadu_epi16(there, static_cast<const uint16_t*>(call.x) + at);
          const __mmask16 lost = _mm256_cmpeq_epi16_mask(_mm256_and_si256(half, _mm256_set1_epi16(0x7f80)), _mm256_set1_epi16(0x7f80));
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(tile + part), _mm256_mask_mov_epi16(half, lost, _mm256_set1_epi16(0x7fc0)));
        } else {
          const __m512 value = _mm512_maskz_loadu_ps(there, static_cast<const float*>(call.x) + at);
          const __mmask16 lost = _mm512_fpclass_ps_mask(value, kInfinities);
          const __m512 kept = _mm512_mask_mov_ps(value, lost, _mm512_set1_ps(std::nanf("")));
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(tile + part), (__m256i)_mm512_cvtneps_pbh(kept));
        }
      }
  }
}

// Two columns of 16 rows of the weight as bf16 pairs, a row of the weight in each lane; `low` and `high` are their codes.
inline __m512i paired(__m512i low, __m512i high, __m512 scale, __m512 base) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i first = _mm512_castps_si512(_mm512_fmadd_ps(_mm512_cvtepi32_ps(low), scale, base));
  const __m512i second = _mm512_castps_si512(_mm512_fmadd_ps(_mm512_cvtepi32_ps(high), scale, base));
  const __m512i below = _mm512_srli_epi32(_mm512_add_epi32(first, half), 16);
  return _mm512_mask_mov_epi16(below, 0xAAAAAAAA, _mm512_add_epi32(second, half));
}

// 16 rows of the weight as second operands of tile products: a tile for every 32 columns, with room for another behind each.
void pair_weights(const Call& call, const Plan& plan, int64_t row, int64_t n, const float* scale, const float* base, uint16_t* to) {
  const __m512i byte = _mm512_set1_epi32(255);
  alignas(64) uint8_t codes[2 * kCodesBytes];
  for (int64_t g = 0; g < call.groups; ++g) {
    plan.unpack_tile(call, plan, row, n, g, codes);
    const __m512 own_scale = _mm512_loadu_ps(scale + g * kTileOut), own_base = _mm512_loadu_ps(base + g * kTileOut);
    for (int64_t piece = 0; piece < call.group_size / kTileColumns; ++piece) {
      __m512i four[16];  // after the turn, four columns of all rows
      TAP_UNROLL16 for (int r = 0; r < 16; ++r) four[r] = _mm512_load_si512(codes + piece * kCodesBytes + r * kTileColumns);
      transpose(four);
      TAP_UNROLL16 for (int i = 0; i < 16; ++i) {
        const __m512i v = four[i];
        uint16_t* pair = to + i / 8 * 2 * kTileNumbers + i % 8 * 64;
        const __m512i c0 = _mm512_and_si512(v, byte), c1 = _mm512_and_si512(_mm512_srli_epi32(v, 8), byte);
        const __m512i c2 = _mm512_and_si512(_mm512_srli_epi32(v, 16), byte), c3 = _mm512_srli_epi32(v, 24);
        _mm512_store_si512(pair, paired(c0, c1, own_scale, own_base));
        _mm512_store_si512(pair + 32, paired(c2, c3, own_scale, own_base));
      }
      to += 4 * kTileNumbers;
    }
  }
}

// A tile of sums to its place among the outputs, of which some may not be there.
void store_sums(const Call& call, const float* sums, int64_t m, int64_t row) {
  const int64_t n_out = std::min<int64_t>(kTileOut, call.out - row), n_rows = std::min<int64_t>(kPairRows, call.n_rows - m);
  for (int64_t r = 0; r < n_rows; ++r)
    store_outputs(call, (m + r) * call.out + row, static_cast<__mmask16>((1u << n_out) - 1), _mm512_loadu_ps(sums + 16 * r));
}

struct PromptScratch {
  std::vector<Line> weights;        // (columns / 32, 2, 16, 32): what pair_weights leaves of two blocks
  std::vector<float> scale, base;   // (groups, kTileOut)
  std::vector<Line> sums;           // (row blocks, 4, 16, 16): tiles as far as their columns were added up
};

// 32 rows of activations times 32 of the weight, over the columns of `steps` tiles, added to what is there.
inline void add_products(const uint16_t* x, const uint16_t* w, int64_t steps, float* sums, bool is_first) {
  if (is_first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + 256, 64);
    _tile_loadd(2, sums + 512, 64);
    _tile_loadd(3, sums + 768, 64);
  }
  for (int64_t k = 0; k < steps; ++k, x += 2 * kTileNumbers, w += 2 * kTileNumbers) {
    _tile_loadd(4, x, 64);
    _tile_loadd(6, w, 64);
    _tile_loadd(5, x + kTileNumbers, 64);
    _tile_loadd(7, w + kTileNumbers, 64);
    TAP_UNROLL16 for (int line = 0; line < 32; ++line) __builtin_prefetch(x + kAheadTiles * 2 * kTileNumbers + line * 32, 0, 3);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

void work_on_prompt(const Call& call, const Plan& plan, const RowsView& rows, int64_t begin, int64_t end) {
  static thread_local PromptScratch scratch;
  const int64_t columns = call.groups * call.group_size, steps = columns / kPairColumns, block = columns * kTileOut;
  const int64_t row_blocks = (call.n_rows + 2 * kPairRows - 1) / (2 * kPairRows), parts = (steps + kChunkTiles - 1) / kChunkTiles;
  scratch.weights.resize(static_cast<size_t>(2 * block / 32));
  scratch.scale.resize(static_cast<size_t>(call.groups * kTileOut));
  scratch.base.resize(static_cast<size_t>(call.groups * kTileOut));
  scratch.sums.resize(static_cast<size_t>(row_blocks * 64));
  const FullTiles shapes;
  for (int64_t row = begin; row < end; row += 2 * kTileOut) {
    const bool is_pair = row + kTileOut < end;
    for (int64_t b = 0; b <= is_pair; ++b) {
      const int64_t from = row + b * kTileOut, n = std::min<int64_t>(kTileOut, end - from);
      read_scales(call, from, n, scratch.scale.data(), scratch.base.data());
      pair_weights(call, plan, from, n, scratch.scale.data(), scratch.base.data(), scratch.weights.data()->at + b * kTileNumbers);
    }
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t start = part * steps / parts, stop = (part + 1) * steps / parts;
      const uint16_t* w = scratch.weights.data()->at + start * 2 * kTileNumbers;
      for (int64_t m = 0; m < row_blocks; ++m) {
        const uint16_t* x = rows.halves + m * 2 * kPairRows * columns + start * 2 * kTileNumbers;
        float* sums = reinterpret_cast<float*>(scratch.sums.data()) + m * 1024;
        add_products(x, w, stop - start, sums, part == 0);
        if (part + 1 < parts) continue;
        for (int tile = 0; tile < 4; ++tile) {
          const int64_t at = m * 2 * kPairRows + tile / 2 * kPairRows;
          if ((tile % 2 == 0 || is_pair) && at < call.n_rows) store_sums(call, sums + tile * 256, at, row + tile % 2 * kTileOut);
        }
      }
    }
  }
}

#else

constexpr bool kHasPrompts = false;
bool takes_prompts(const Call&) { return false; }
void encode_prompt(const Call&, Rows&) {}
void work_on_prompt(const Call&, const Plan&, const RowsView&, int64_t, int64_t) {}

#endif

}  // namespace
