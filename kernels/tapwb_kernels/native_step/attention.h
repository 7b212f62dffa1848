// Keys and values of one layer: append the rows of a step, then each row attends to what came before it and to itself.

#pragma once

#include <vector>
#include "ops.h"
#include "vectors.h"

namespace {

template <class Number>
void append(const Op& op, const Step& step, int64_t capacity, const float* rows, int64_t stride, Number* cache) {
  for (int64_t row = 0; row < step.n_rows; ++row)
    for (int64_t head = 0; head < op.n_kv_heads; ++head) {
      Number* to = cache + (head * capacity + step.position + row) * op.head_dim;
      const float* from = rows + row * stride + head * op.head_dim;
      for (int64_t i = 0; i < op.head_dim; ++i) keep1(to + i, from[i]);
    }
}

// Products of kHeads queries, which share their keys, with the keys from `begin` to `end`.
template <int kHeads, class Number>
void scores_of(const float* q, int64_t dim, const Number* keys, int64_t begin, int64_t end, float factor, float* scores,
               int64_t stride) {
  for (int64_t t = begin; t < end; ++t) {
    const Number* key = keys + t * dim;
    Float8 sums[kHeads] = {};
    for (int64_t i = 0; i + 8 <= dim; i += 8) {
      const Float8 k = load8(key + i);
      TAP_UNROLL for (int h = 0; h < kHeads; ++h) sums[h] += load8(q + h * dim + i) * k;
    }
    for (int h = 0; h < kHeads; ++h) {
      float sum = sum8(sums[h]);
      for (int64_t i = dim / 8 * 8; i < dim; ++i) sum += q[h * dim + i] * load1(key + i);
      scores[h * stride + t - begin] = sum * factor;
    }
  }
}

// Scores to weights that are not yet divided by their sum, which is returned.
float soften(float* scores, int64_t n, float softcap) {
  if (softcap > 0.0f)
    by_eights(n, [&](int64_t i, int64_t some) {
      store_some(scores + i, same(softcap) * tanh8(load_some(scores + i, some) * same(1.0f / softcap)), some);
    });
  float top = scores[0];
  for (int64_t t = 1; t < n; ++t) top = std::max(top, scores[t]);
  if (!(top - top == 0.0f)) top = 0.0f;  // infinite or no number: what follows tells
  Float8 total = {};
  float rest = 0.0f;
  by_eights(n, [&](int64_t i, int64_t some) {
    const Float8 e = exp8(load_some(scores + i, some) - same(top));
    store_some(scores + i, e, some);
    if (some == 8) total += e;
    else for (int64_t j = 0; j < some; ++j) rest += e[j];
  });
  return sum8(total) + rest;
}

// The values weighted and summed, eight columns at a time for kHeads heads that share them.
template <int kHeads, class Number>
void mix(const float* weights, int64_t stride, const float* totals, const Number* values, int64_t dim, int64_t begin,
         int64_t end, float* out) {
  constexpr int kWide = 4;  // so many times eight columns stay in registers
  int64_t column = 0;
  for (; column + 8 * kWide <= dim; column += 8 * kWide) {
    Float8 sums[kHeads][kWide] = {};
    for (int64_t t = begin; t < end; ++t) {
      Float8 value[kWide];
      TAP_UNROLL for (int i = 0; i < kWide; ++i) value[i] = load8(values + t * dim + column + 8 * i);
      TAP_UNROLL for (int h = 0; h < kHeads; ++h) {
        const Float8 weight = same(weights[h * stride + t - begin]);
        TAP_UNROLL for (int i = 0; i < kWide; ++i) sums[h][i] += weight * value[i];
      }
    }
    for (int h = 0; h < kHeads; ++h)
      for (int i = 0; i < kWide; ++i) store8(out + h * dim + column + 8 * i, sums[h][i] * same(1.0f / totals[h]));
  }
  for (; column < dim; ++column)
    for (int h = 0; h < kHeads; ++h) {
      float sum = 0.0f;
      for (int64_t t = begin; t < end; ++t) sum += weights[h * stride + t - begin] * load1(values + t * dim + column);
      out[h * dim + column] = sum / totals[h];
    }
}

template <int kHeads, class Number>
void attend_heads(const Op& op, const float* q, const Number* keys, const Number* values, int64_t begin, int64_t end,
                  float* scores, float* out) {
  const int64_t n = end - begin;
  float totals[kHeads];
  scores_of<kHeads>(q, op.head_dim, keys, begin, end, op.factor, scores, n);
  for (int h = 0; h < kHeads; ++h) totals[h] = soften(scores + h * n, n, op.softcap);
  mix<kHeads>(scores, n, totals, values, op.head_dim, begin, end, out);
}

template <class Number>
void attend(const Op& op, const Step& step, const Memory& memory) {
  static thread_local std::vector<float> scores;
  Number* keys = static_cast<Number*>(memory.keys[op.layer]);
  Number* values = static_cast<Number*>(memory.values[op.layer]);
  append(op, step, memory.capacity, op.x2, op.x2_stride, keys);
  append(op, step, memory.capacity, op.weight, op.x2_stride, values);
  const int64_t n_shared = op.n_heads / op.n_kv_heads;
  for (int64_t row = 0; row < step.n_rows; ++row) {
    const int64_t end = step.position + row + 1, begin = op.window > 0 ? std::max<int64_t>(0, end - op.window) : 0;
    scores.resize(static_cast<size_t>(4 * (end - begin)));
    for (int64_t head = 0; head < op.n_heads;) {
      const int64_t kv = head / n_shared, left = (kv + 1) * n_shared - head;
      const Number* k = keys + kv * memory.capacity * op.head_dim;
      const Number* v = values + kv * memory.capacity * op.head_dim;
      const float* q = op.x + row * op.x_stride + head * op.head_dim;
      float* out = op.y + row * op.y_stride + head * op.head_dim;
      const int64_t some = std::min<int64_t>(4, left);
      if (some == 4) attend_heads<4>(op, q, k, v, begin, end, scores.data(), out);
      else if (some == 3) attend_heads<3>(op, q, k, v, begin, end, scores.data(), out);
      else if (some == 2) attend_heads<2>(op, q, k, v, begin, end, scores.data(), out);
      else attend_heads<1>(op, q, k, v, begin, end, scores.data(), out);
      head += some;
    }
  }
}

}  // namespace
