// More rows of activations than a decode step has: weights are unpacked once into panels and used by all rows.
//
// A panel holds 32 rows of the weight, turned so that neighbouring outputs lie in neighbouring lanes: a product then needs
// no sum across lanes, and the numbers of a group are applied once for 64 columns. Sums of a group are exact integers.

#pragma once

#include <vector>
#include "encode.h"
#include "loops.h"

namespace {

constexpr int kPanelRows = 32;

#if defined(TAP_AVX512)

constexpr bool kHasPanels = true;
constexpr int kLanes = kPanelRows / 2;
constexpr int kTileRows = 6;                   // 12 sums of integers and 12 of floats stay in registers
constexpr int64_t kLargestPanelGroup = 128;    // 255 * 32639 * 128 is still below 2^31
constexpr int64_t kChunkPairs = 256;           // pairs of columns of a panel that the first-level cache holds

struct Panel {
  std::vector<uint8_t> codes;    // (kPanelRows, groups * group_size)
  std::vector<int16_t> pairs;    // (groups * group_size / 2, kPanelRows, 2)
  std::vector<float> scale;      // (groups, kPanelRows): what a product of a code and a unit of x is worth
  std::vector<float> base;       // (groups, kPanelRows): what a group adds for each unit of x's sum
  std::vector<float> total;      // (n_rows, kPanelRows)
  std::vector<float> meta;
};

// 16 vectors of 16 words, turned about their diagonal.
inline void transpose(__m512i* v) {
  __m512i t[16];
  TAP_UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  TAP_UNROLL for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  TAP_UNROLL for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88), b = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88), d = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    t[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
    t[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
    t[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

// Codes of 16 rows, as pairs of columns side by side; columns are a multiple of 8, and 64 at a time where there are.
inline void pair_up(const uint8_t* codes, int64_t columns, int16_t* pairs) {
  const __m512i low = _mm512_set1_epi32(0xff), high = _mm512_set1_epi32(0xff0000);
  for (int64_t start = 0; start < columns; start += 64) {
    const int64_t n = std::min<int64_t>(64, columns - start);
    const __mmask64 some = n == 64 ? ~0ull : (1ull << n) - 1;
    __m512i v[16];
    for (int r = 0; r < kLanes; ++r) v[r] = _mm512_maskz_loadu_epi8(some, codes + r * columns + start);
    transpose(v);
    for (int64_t word = 0; word < n / 4; ++word) {
      const __m512i q = v[word];
      int16_t* at = pairs + (start + 4 * word) * kPanelRows;
      const __m512i first = _mm512_or_si512(_mm512_and_si512(q, low), _mm512_and_si512(_mm512_slli_epi32(q, 8), high));
      const __m512i second = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(q, 16), low),
                                             _mm512_and_si512(_mm512_srli_epi32(q, 8), high));
      _mm512_storeu_si512(at, first);
      _mm512_storeu_si512(at + 2 * kPanelRows, second);
    }
  }
}

// Rows row .. row + n - 1 of the weight; rows that are missing count nothing.
void fill_panel(const Call& call, const Plan& plan, int64_t row, int64_t n, Panel& panel) {
  const int64_t groups = call.groups, columns = groups * call.group_size;
  panel.codes.resize(static_cast<size_t>(kPanelRows * columns));
  panel.pairs.resize(static_cast<size_t>(kPanelRows * columns));
  panel.scale.assign(static_cast<size_t>(kPanelRows * groups), 0.0f);
  panel.base.assign(static_cast<size_t>(kPanelRows * groups), 0.0f);
  panel.meta.resize(static_cast<size_t>(2 * groups + 16));
  float *first = panel.meta.data(), *second = first + groups + 8;
  for (int64_t r = 0; r < n; ++r) {
    uint8_t* codes = &panel.codes[static_cast<size_t>(r * columns)];
    if (plan.unpack) plan.unpack(call, plan, row + r, codes);
    else unpack_any(call, row + r, codes);
    read_meta(call.first, call.meta_dtype, (row + r) * groups, groups, first);
    read_meta(call.second, call.meta_dtype, (row + r) * groups, groups, second);
    for (int64_t g = 0; g < groups; ++g) {
      panel.base[static_cast<size_t>(g * kPanelRows + r)] = second[g] + first[g] * call.plus;
      panel.scale[static_cast<size_t>(g * kPanelRows + r)] = first[g] * call.times;
    }
  }
  if (n < kPanelRows) std::memset(&panel.codes[static_cast<size_t>(n * columns)], 0, static_cast<size_t>((kPanelRows - n) * columns));
  for (int half = 0; half < 2; ++half)
    pair_up(&panel.codes[static_cast<size_t>(half * kLanes * columns)], columns, panel.pairs.data() + half * 2 * kLanes);
}

// kRows rows of activations with groups begin .. end - 1 of a panel, added to their totals.
template <int kRows>
void tile(const Call& call, const Panel& panel, const RowsView& rows, int64_t m, int64_t begin, int64_t end, float* total) {
  const int64_t groups = call.groups, size = call.group_size, columns = groups * size;
  __m512 sum[kRows][2];
  TAP_UNROLL for (int r = 0; r < kRows; ++r)
    TAP_UNROLL for (int j = 0; j < 2; ++j)
      sum[r][j] = begin == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(total + (m + r) * kPanelRows + j * kLanes);
  const int16_t* x = rows.codes + m * columns;
  for (int64_t g = begin; g < end; ++g) {
    __m512i dot[kRows][2];
    TAP_UNROLL for (int r = 0; r < kRows; ++r) dot[r][0] = dot[r][1] = _mm512_setzero_si512();
    const int16_t* pairs = panel.pairs.data() + g * size * kPanelRows;
    for (int64_t k = g * size; k < (g + 1) * size; k += 2, pairs += 2 * kPanelRows) {
      const __m512i w0 = _mm512_loadu_si512(pairs), w1 = _mm512_loadu_si512(pairs + kPanelRows);
      TAP_UNROLL for (int r = 0; r < kRows; ++r) {
        int32_t pair;
        std::memcpy(&pair, x + r * columns + k, 4);
        const __m512i both = _mm512_set1_epi32(pair);
#if defined(__AVX512VNNI__)
        dot[r][0] = _mm512_dpwssd_epi32(dot[r][0], w0, both);
        dot[r][1] = _mm512_dpwssd_epi32(dot[r][1], w1, both);
#else
        dot[r][0] = _mm512_add_epi32(dot[r][0], _mm512_madd_epi16(w0, both));
        dot[r][1] = _mm512_add_epi32(dot[r][1], _mm512_madd_epi16(w1, both));
#endif
      }
    }
    TAP_UNROLL for (int j = 0; j < 2; ++j) {
      const __m512 scale = _mm512_loadu_ps(&panel.scale[static_cast<size_t>(g * kPanelRows + j * kLanes)]);
      const __m512 base = _mm512_loadu_ps(&panel.base[static_cast<size_t>(g * kPanelRows + j * kLanes)]);
      TAP_UNROLL for (int r = 0; r < kRows; ++r) {
        const __m512 worth = _mm512_mul_ps(scale, _mm512_set1_ps(rows.scale[(m + r) * kBlock * groups + g]));
        sum[r][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][j]), worth, sum[r][j]);
        sum[r][j] = _mm512_fmadd_ps(base, _mm512_set1_ps(rows.sum[(m + r) * groups + g]), sum[r][j]);
      }
    }
  }
  TAP_UNROLL for (int r = 0; r < kRows; ++r)
    TAP_UNROLL for (int j = 0; j < 2; ++j) _mm512_storeu_ps(total + (m + r) * kPanelRows + j * kLanes, sum[r][j]);
}

using Tile = void (*)(const Call&, const Panel&, const RowsView&, int64_t, int64_t, int64_t, float*);
constexpr Tile kTiles[kTileRows] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

bool takes_panels(const Call& call) { return call.group_size <= kLargestPanelGroup; }

void work_on_many(const Call& call, const Plan& plan, const RowsView& rows, int64_t begin, int64_t end) {
  static thread_local Panel panel;
  panel.total.resize(static_cast<size_t>(call.n_rows * kPanelRows));
  const int64_t chunk = std::max<int64_t>(1, 2 * kChunkPairs / call.group_size);
  for (int64_t row = begin; row < end; row += kPanelRows) {
    const int64_t n = std::min<int64_t>(kPanelRows, end - row);
    fill_panel(call, plan, row, n, panel);
    for (int64_t g = 0; g < call.groups; g += chunk) {
      const int64_t last = std::min(call.groups, g + chunk);
      for (int64_t m = 0; m < call.n_rows; m += kTileRows)
        kTiles[std::min<int64_t>(kTileRows, call.n_rows - m) - 1](call, panel, rows, m, g, last, panel.total.data());
    }
    for (int64_t m = 0; m < call.n_rows; ++m)
      for (int64_t r = 0; r < n; ++r) {
        const float value = panel.total[static_cast<size_t>(m * kPanelRows + r)];
        if (call.y_dtype == kFloat32) static_cast<float*>(call.y)[m * call.out + row + r] = value;
        else static_cast<uint16_t*>(call.y)[m * call.out + row + r] = float_to_bfloat(value);
      }
  }
}

#else

// Other processors multiply many rows in PyTorch.
constexpr bool kHasPanels = false;
constexpr int64_t kLargestPanelGroup = 0;
bool takes_panels(const Call&) { return false; }
void work_on_many(const Call&, const Plan&, const RowsView&, int64_t, int64_t) {}

#endif

}  // namespace
