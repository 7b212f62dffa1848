// A range of rows of the weight times all rows of activations.

#pragma once

#include <vector>
#include "encode.h"
#include "loops.h"
#include "many_rows.h"
#include "prompt.h"
#include "tiles.h"

namespace {

// As the loop that will multiply them takes them: digits for tiles, or columns in another order, or as they are.
void arrange_rows(int64_t n_rows, int64_t groups, int64_t group_size, Rows& rows) {
  rows.lanes = takes_tiles(n_rows, group_size) ? lanes_of(n_rows) : 1;
  if (rows.lanes > 1) arrange_tiles(n_rows, groups, group_size, rows);
  else if (n_rows <= kMaxRows && is_wide(group_size)) arrange(rows.codes.data(), n_rows * groups * group_size);
}

void encode_rows(const Call& call, Rows& rows) {
  if (takes_prompts(call)) return encode_prompt(call, rows);
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
  arrange_rows(call.n_rows, call.groups, call.group_size, rows);
}

struct Scratch {
  std::vector<float> first, base, scale;
  std::vector<uint8_t> codes;
};

// What is left of the metadata of `n` rows once the activations are known.
void scale_block(const Call& call, const RowsView& rows, int64_t row, int64_t n, Scratch& scratch) {
  const int64_t stride = call.groups * kBlock, count = n * call.groups;
  float *first = scratch.first.data(), *base = scratch.base.data(), *scale = scratch.scale.data();
  const int64_t width = call.meta_dtype == kFloat32 ? 4 : 2;
  __builtin_prefetch(static_cast<const char*>(call.first) + row * call.groups * width + kPrefetchMetaBytes, 0, 2);
  __builtin_prefetch(static_cast<const char*>(call.second) + row * call.groups * width + kPrefetchMetaBytes, 0, 2);
#if defined(TAP_AVX512)
  const __m512 times = _mm512_set1_ps(call.times), plus = _mm512_set1_ps(call.plus);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 there = static_cast<__mmask16>(count - i >= 16 ? 0xFFFF : (1 << (count - i)) - 1);
    const __m512 f = meta16(call.first, call.meta_dtype, row * call.groups + i, there);
    const __m512 s = meta16(call.second, call.meta_dtype, row * call.groups + i, there);
    _mm512_mask_storeu_ps(base + i, there, _mm512_fmadd_ps(f, plus, s));
    const __m512 wide = _mm512_mul_ps(f, times);
    for (int64_t m = 0; m < call.n_rows; ++m) {
      const __m512 x_scale = _mm512_maskz_loadu_ps(there, rows.scale + m * stride + i);
      _mm512_mask_storeu_ps(scale + m * stride + i, there, _mm512_mul_ps(wide, x_scale));
    }
  }
#else
  read_meta(call.first, call.meta_dtype, row * call.groups, count, first);
  read_meta(call.second, call.meta_dtype, row * call.groups, count, base);
  for (int64_t i = 0; i < count; ++i) base[i] += first[i] * call.plus;
  for (int64_t i = 0; i < count; ++i) first[i] *= call.times;
  for (int64_t m = 0; m < call.n_rows; ++m)
    for (int64_t i = 0; i < count; ++i) scale[m * stride + i] = first[i] * rows.scale[m * stride + i];
#endif
}

// Rows row .. row + n - 1 of the weight, n <= kBlock; the sums of rows beyond are not looked at.
void products_of(const Call& call, const Plan& plan, const RowsView& rows, int64_t row, int64_t n, Scratch& scratch, float* y) {
  const int64_t groups = call.groups, padded = groups * call.group_size;
  scale_block(call, rows, row, n, scratch);
  Block block{row, scratch.codes.data(), rows.codes, rows.sum, scratch.base.data(), scratch.scale.data(), y};
  // A last block that is not full goes through memory, so that nothing beyond the planes is read.
  const bool is_straight = n == kBlock && plan.straight[call.n_rows > 1 ? 1 : 0];
  if (is_straight) block.codes = nullptr;
  else if (call.n_planes == 1 && call.widths[0] == 8 && call.bits == 8 && n == kBlock) block.codes = call.planes[0] + row * padded;
  else
    for (int64_t r = 0; r < n; ++r) {
      uint8_t* codes = scratch.codes.data() + r * padded;
      if (plan.unpack) plan.unpack(call, plan, row + r, codes);
      else unpack_any(call, row + r, codes);
    }
  const Dot* dots = is_straight ? plan.straight : plan.rows;
  for (int64_t start = 0; start < call.n_rows;) {
    int64_t some = call.n_rows - start;
    Block part = block;
    part.x += start * padded;
    part.x_sum += start * groups;
    part.scale += start * groups * kBlock;
    part.out += start * kBlock;
    if (dots[0]) {
      while (!dots[some - 1]) some = (some + 1) / 2;
      dots[some - 1](call, plan, part);
    } else {
      while (some > kRowBlock) some = (some + 1) / 2;
      kDotAny[some - 1](call, part);
    }
    start += some;
  }
}

void work_on(const Call& call, const Plan& plan, const RowsView& rows, int64_t begin, int64_t end) {
  if (takes_prompts(call)) return work_on_prompt(call, plan, rows, begin, end);
  if (takes_tiles(call.n_rows, call.group_size)) return work_on_tiles(call, plan, rows, begin, end);
  if (call.n_rows > kMaxRows) return work_on_many(call, plan, rows, begin, end);
  static thread_local Scratch scratch;
  const size_t groups = static_cast<size_t>(call.groups);
  scratch.first.resize(groups * kBlock + 8);
  scratch.base.resize(groups * kBlock + 8);
  scratch.scale.resize(groups * kBlock * kMaxRows);
  scratch.codes.resize(groups * static_cast<size_t>(call.group_size) * kBlock);
  float y[kMaxRows * kBlock];
  for (int64_t row = begin; row < end; row += kBlock) {
    const int64_t n = std::min<int64_t>(kBlock, end - row);
    products_of(call, plan, rows, row, n, scratch, y);
    for (int64_t m = 0; m < call.n_rows; ++m) {
      for (int64_t r = 0; r < n; ++r) {
        const int64_t at = m * call.out + row + r;
        if (call.y_dtype == kFloat32) static_cast<float*>(call.y)[at] = y[m * kBlock + r];
        else static_cast<uint16_t*>(call.y)[at] = float_to_bfloat(y[m * kBlock + r]);
      }
    }
  }
}

}  // namespace
