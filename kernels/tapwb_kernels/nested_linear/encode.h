// Activations as 16-bit integers, one scale for each row and group.

#pragma once

#include <vector>
#include "wide.h"

namespace {

// Activations of a call as 16-bit integers with one scale for each group; columns of padding are 0.
struct Rows {
  std::vector<int16_t> codes;   // (n_rows, groups * group_size)
  std::vector<float> scale;     // (n_rows, kBlock, groups): kBlock times the same, as the weight's come in blocks
  std::vector<float> sum;       // (n_rows, groups): of the values that the codes stand for
  std::vector<float> values;    // one row in fp32
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
  if (top < 1e-30f) return;  // below what fp32 sums keep anyway; 32767 / top would overflow
  const float per_step = 32767.0f / top;
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
  *scale = top / 32767.0f;
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

// In the order of columns in which the loops for up to kMaxRows rows take them.
void arrange_rows(int64_t n_rows, int64_t groups, int64_t group_size, Rows& rows) {
  if (is_wide(group_size)) arrange(rows.codes.data(), n_rows * groups * group_size);
}

void encode_rows(const Call& call, Rows& rows) {
  make_room(rows, call.n_rows, call.groups, call.group_size);
  rows.values.resize(static_cast<size_t>(call.cols));
  for (int64_t row = 0; row < call.n_rows; ++row) {
    const float* x = static_cast<const float*>(call.x) + row * call.cols;
    if (call.x_dtype == kBFloat16) {
      const uint16_t* source = static_cast<const uint16_t*>(call.x) + row * call.cols;
      for (int64_t i = 0; i < call.cols; ++i) rows.values[i] = from_bits(static_cast<uint32_t>(source[i]) << 16);
      x = rows.values.data();
    }
    encode_row(x, row, call.cols, call.groups, call.group_size, rows);
  }
  if (call.n_rows <= kMaxRows) arrange_rows(call.n_rows, call.groups, call.group_size, rows);
}

// Rows from `first` on, as a product takes them.
struct RowsView {
  const int16_t* codes;
  const float *scale, *sum;
  RowsView(const Rows& rows, int64_t first, int64_t groups, int64_t group_size)
      : codes(rows.codes.data() + first * groups * group_size),
        scale(rows.scale.data() + first * groups * kBlock),
        sum(rows.sum.data() + first * groups) {}
};

}  // namespace
