// What lies between the products: norms, rotations, activations, sums. One row at a time, in fp32.

#pragma once

#include "ops.h"
#include "vectors.h"

namespace {

// x: n_heads segments of `width` a row; weight and bias of one segment; y as x. Centred is a layer norm.
void norm(const Op& op, int64_t row) {
  for (int64_t head = 0; head < op.n_heads; ++head) {
    const float* x = op.x + row * op.x_stride + head * op.width;
    float* y = op.y + row * op.y_stride + head * op.width;
    const float n = static_cast<float>(op.width);
    float mean = 0.0f;
    if (op.is_centred) {
      Float8 sum = {};
      by_eights(op.width, [&](int64_t i, int64_t some) { sum += load_some(x + i, some); });
      mean = sum8(sum) / n;
    }
    Float8 squares = {};
    float rest = 0.0f;
    by_eights(op.width, [&](int64_t i, int64_t some) {
      const Float8 d = load_some(x + i, some) - same(mean);
      if (some == 8) squares += d * d;
      else for (int64_t j = 0; j < some; ++j) rest += d[j] * d[j];
    });
    const float factor = 1.0f / std::sqrt((sum8(squares) + rest) / n + op.eps);
    by_eights(op.width, [&](int64_t i, int64_t some) {
      Float8 v = (load_some(x + i, some) - same(mean)) * same(factor);
      if (op.weight) v *= load_some(op.weight + i, some);
      if (op.bias) v += load_some(op.bias + i, some);
      store_some(y + i, v, some);
    });
  }
}

// y: n_heads heads a row, of which the first rotary_dim columns are turned in place, half against half.
void rope(const Op& op, const Memory& memory, int64_t row, int64_t position) {
  const int64_t half = op.rotary_dim / 2;
  const float* cosine = memory.cosines[op.table] + position * op.rotary_dim;
  const float* sine = memory.sines[op.table] + position * op.rotary_dim;
  for (int64_t head = 0; head < op.n_heads; ++head) {
    float *a = op.y + row * op.y_stride + head * op.head_dim, *b = a + half;
    by_eights(half, [&](int64_t i, int64_t some) {
      const Float8 first = load_some(a + i, some), second = load_some(b + i, some);
      const Float8 turned = first * load_some(cosine + i, some) - second * load_some(sine + i, some);
      store_some(b + i, second * load_some(cosine + half + i, some) + first * load_some(sine + half + i, some), some);
      store_some(a + i, turned, some);
    });
  }
}

inline Float8 activated(Float8 x, int activation, int64_t some) {
  switch (activation) {
    case kSilu: return x * sigmoid8(x);
    // 0.5 (1 + tanh u) is the sigmoid of 2 u.
    case kGeluTanh: return x * sigmoid8(same(1.5957691216f) * (x + same(0.044715f) * x * x * x));
    case kGeluErf: {
      Float8 y = {};
      for (int64_t j = 0; j < some; ++j) y[j] = 0.5f * x[j] * (1.0f + std::erf(x[j] * 0.70710678f));
      return y;
    }
    case kRelu: return pick<Float8>(x < same(0.0f), same(0.0f), x);
    default: return x;
  }
}

// y = activation(x), times x2 where there is one.
void activate(const Op& op, int64_t row) {
  const float *x = op.x + row * op.x_stride, *x2 = op.x2 ? op.x2 + row * op.x2_stride : nullptr;
  float* y = op.y + row * op.y_stride;
  by_eights(op.width, [&](int64_t i, int64_t some) {
    Float8 v = activated(load_some(x + i, some), op.activation, some);
    if (x2) v *= load_some(x2 + i, some);
    store_some(y + i, v, some);
  });
}

// y = x + factor * x2
void add(const Op& op, int64_t row) {
  const float *x = op.x + row * op.x_stride, *x2 = op.x2 + row * op.x2_stride;
  float* y = op.y + row * op.y_stride;
  by_eights(op.width, [&](int64_t i, int64_t some) {
    store_some(y + i, load_some(x + i, some) + same(op.factor) * load_some(x2 + i, some), some);
  });
}

// y = factor * x, then softcap * tanh(y / softcap) where there is one
void scale(const Op& op, int64_t row) {
  const float* x = op.x + row * op.x_stride;
  float* y = op.y + row * op.y_stride;
  by_eights(op.width, [&](int64_t i, int64_t some) {
    Float8 v = same(op.factor) * load_some(x + i, some);
    if (op.softcap > 0.0f) v = same(op.softcap) * tanh8(v * same(1.0f / op.softcap));
    store_some(y + i, v, some);
  });
}

// y = x + the row of a table that belongs to the position
void add_position(const Op& op, int64_t row, int64_t position) {
  const float *x = op.x + row * op.x_stride, *table = op.weight + position * op.width;
  float* y = op.y + row * op.y_stride;
  for (int64_t i = 0; i < op.width; ++i) y[i] = x[i] + table[i];
}

// The level of one row: x . weight over the root mean square of x, plus slope times its logarithm, plus factor; each cut
// (bias) that this reaches is one level up.
int gate(const Op& op, int64_t row, double correction) {
  const float* x = op.x + row * op.x_stride;
  float value = 0.0f;
  if (op.weight) {
    Float8 aligned = {}, squares = {};
    float rest_aligned = 0.0f, rest_squares = 0.0f;
    by_eights(op.width, [&](int64_t i, int64_t some) {
      const Float8 v = load_some(x + i, some), a = v * load_some(op.weight + i, some), s = v * v;
      if (some == 8) aligned += a, squares += s;
      else for (int64_t j = 0; j < some; ++j) rest_aligned += a[j], rest_squares += s[j];
    });
    const float size = std::sqrt((sum8(squares) + rest_squares) / static_cast<float>(op.width) + op.eps);
    value = (sum8(aligned) + rest_aligned) / size + op.slope * std::log(size) + op.factor;
  }
  const double* cuts = reinterpret_cast<const double*>(op.bias);
  int above = 0;
  for (int i = 0; i + 1 < op.n_levels; ++i) above += static_cast<double>(value) - correction >= cuts[i];
  return op.levels[above];
}

}  // namespace
