// Activations as 16-bit integers, one scale for each row and group.

#pragma once

#include <vector>
#include "wide.h"

namespace {

// The largest code, such that every code is two signed bytes: 127 * 256 + 127.
constexpr float kTopCode = 32639.0f;

// A line of memory. What tiles are loaded from begins at one, or every row of a tile would lie in two.
struct alignas(64) Line {
  uint16_t at[32];
};

// Activations of a call as 16-bit integers with one scale for each group; columns of padding are 0.
struct Rows {
  std::vector<int16_t> codes;   // (n_rows, groups * group_size)
  std::vector<float> scale;     // (n_rows, kBlock, groups): kBlock times the same, as the weight's come in blocks
  std::vector<float> sum;       // (n_rows, groups): of the values that the codes stand for
  std::vector<float> values;    // one row in fp32
  // The same as a tile register takes them (tiles.h).
  std::vector<int8_t> digits;      // (groups * group_size / 4, 2, lanes, 4)
  std::vector<float> lane_scale;   // (groups, 16): scale of each lane, over and over
  std::vector<float> lane_sum;     // (groups, lanes)
  int lanes = 1;
  std::vector<Line> halves;        // the rows of a prompt in bf16 (prompt.h)
};

void encode_group(const float* x, int64_t n, int64_t group_size, int16_t* codes, float* scale, float* sum) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, to_bits(x[i]) & 0x7fffffffu);
  const float top = from_bits(largest);
  std::fill(codes, codes + group_size, static_cast<int16_t>(0));
  *scale = *sum = 0.0f;
  if (largest >= 0x7f800000u) {  // NaN or infinity: the whole row becomes NaN
    *scale = *sum = std::nanf("");
    return;
  }
  if (top < 1e-30f) return;  // below what fp32 sums keep anyway; kTopCode / top would overflow
  const float per_step = kTopCode / top;
  int64_t total = 0;
  for (int64_t start = 0; start < n; start += 4096) {
    int32_t part = 0;
    for (int64_t i = start; i < std::min(n, start + 4096); ++i) {
      // Adding 1.5 * 2^23 rounds to the nearest whole number, in the low bits of the sum.
      const int32_t code = static_cast<int32_t>(to_bits(x[i] * per_step + 12582912.0f)) - 0x4b400000;
      codes[i] = static_cast<int16_t>(code);
      part += code;
    }
    total += part;
  }
  *scale = top / kTopCode;
  *sum = *scale * static_cast<float>(total);
}

void make_room(Rows& rows, int64_t n_rows, int64_t groups, int64_t group_size) {
  rows.codes.resize(static_cast<size_t>(n_rows * groups * group_size));
  rows.scale.resize(static_cast<size_t>(n_rows * kBlock * groups));
  rows.sum.resize(static_cast<size_t>(n_rows * groups));
}

void encode_row(const float* x, int64_t row, int64_t cols, int64_t groups, int64_t group_size, Rows& rows) {
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t start = g * group_size, n = std::min(group_size, cols - start);
    float scale;
    int16_t* codes = &rows.codes[static_cast<size_t>(row * groups * group_size + start)];
    encode_group(x + start, n, group_size, codes, &scale, &rows.sum[static_cast<size_t>(row * groups + g)]);
    for (int r = 0; r < kBlock; ++r) rows.scale[static_cast<size_t>((row * kBlock + r) * groups + g)] = scale;
  }
}

// Rows from `first` on, as a product takes them.
struct RowsView {
  const int16_t* codes;
  const float *scale, *sum;
  const int8_t* digits;        // of all rows, as `first` may lie within a tile
  const float *lane_scale, *lane_sum;
  const uint16_t* halves;
  int64_t first;
  int lanes;
  RowsView(const Rows& rows, int64_t first, int64_t groups, int64_t group_size)
      : codes(rows.codes.data() + first * groups * group_size),
        scale(rows.scale.data() + first * groups * kBlock),
        sum(rows.sum.data() + first * groups),
        digits(rows.digits.data()),
        lane_scale(rows.lane_scale.data()),
        lane_sum(rows.lane_sum.data()),
        halves(rows.halves.empty() ? nullptr : rows.halves.data()->at),
        first(first),
        lanes(rows.lanes) {}
};

}  // namespace
