// Keys and values of one layer: append the rows of a step, then each row attends to what came before it and to itself.
//
// Sixteen tokens at a time are brought to fp32 and met by all queries that share them, of all rows. What a row adds up, and
// in which order, depends on its own position alone.

#pragma once

#include <vector>
#include "ops.h"
#include "vectors.h"

namespace {

constexpr int64_t kTokens = 16;   // in a block
constexpr int64_t kColumns = 16;  // in a register

template <class Number>
void append(const Op& op, const Step& step, int64_t capacity, const float* rows, int64_t stride, Number* cache) {
  for (int64_t row = 0; row < step.n_rows; ++row)
    for (int64_t head = 0; head < op.n_kv_heads; ++head) {
      Number* to = cache + (head * capacity + step.position + row) * op.head_dim;
      const float* from = rows + row * stride + head * op.head_dim;
      for (int64_t i = 0; i < op.head_dim; ++i) keep1(to + i, from[i]);
    }
}

// Scores to weights that are not yet divided by their sum, which is returned. There is room for sixteen more than n.
float soften(float* scores, int64_t n, float softcap) {
  if (softcap > 0.0f)
    by_eights(n, [&](int64_t i, int64_t some) {
      store_some(scores + i, same(softcap) * tanh8(load_some(scores + i, some) * same(1.0f / softcap)), some);
    });
  std::fill(scores + n, scores + (n + 15) / 16 * 16, -INFINITY);
  Float16 tops = load16(scores);
  for (int64_t i = 16; i < n; i += 16) {
    const Float16 next = load16(scores + i);
    tops = pick<Float16>(next > tops, next, tops);
  }
  float top = tops[0];
  for (int i = 1; i < 16; ++i) top = std::max(top, tops[i]);
  if (!(top - top == 0.0f)) top = 0.0f;  // infinite or no number: what follows tells
  Float16 total = {};
  for (int64_t i = 0; i < n; i += 16) {
    const Float16 e = exp_of<Float16>(load16(scores + i) - top);
    store16(scores + i, e);
    total += e;
  }
  Float8 halves[2];
  std::memcpy(halves, &total, sizeof(halves));
  return sum8(halves[0] + halves[1]);
}

// One layer of one step, for the queries that share a head of keys and values.
template <class Number>
class Attention {
 public:
  Attention(const Op& op, const Step& step)
      : op_(op), step_(step), n_shared_(op.n_heads / op.n_kv_heads),
        padded_((op.head_dim + kColumns - 1) / kColumns * kColumns), from_(begin_of(0) / kTokens * kTokens),
        until_(step.position + step.n_rows), span_((until_ - from_ + kTokens - 1) / kTokens * kTokens + kTokens) {
    const size_t queries = static_cast<size_t>(step.n_rows * n_shared_);
    Room& r = room();
    r.block.assign(static_cast<size_t>(kTokens * padded_), 0.0f);
    r.queries.assign(queries * static_cast<size_t>(padded_), 0.0f);
    r.mixed.resize(queries * static_cast<size_t>(padded_));
    r.scores.resize(queries * static_cast<size_t>(span_) + kTokens);
  }

  void run(const Number* keys, const Number* values, int64_t kv) {
    Room& r = room();
    for_queries([&](int64_t row, int64_t i) {
      const float* q = op_.x + row * op_.x_stride + (kv * n_shared_ + i % n_shared_) * op_.head_dim;
      std::copy(q, q + op_.head_dim, &r.queries[static_cast<size_t>(i * padded_)]);
    });
    for (int64_t t = from_; t < until_; t += kTokens) {
      const float* block = block_of(keys, t);
      for_queries([&](int64_t row, int64_t i) {
        if (t < end_of(row) && t + kTokens > begin_of(row)) score(&r.queries[static_cast<size_t>(i * padded_)], block, scores_of(i, t));
      });
    }
    r.totals.clear();
    for_queries([&](int64_t row, int64_t i) {
      r.totals.push_back(soften(scores_of(i, begin_of(row)), end_of(row) - begin_of(row), op_.softcap));
    });
    std::fill(r.mixed.begin(), r.mixed.end(), 0.0f);
    for (int64_t t = from_; t < until_; t += kTokens) {
      const float* block = block_of(values, t);
      for_queries([&](int64_t row, int64_t i) {
        const int64_t first = std::max(t, begin_of(row)), last = std::min(t + kTokens, end_of(row));
        if (first < last) mix(scores_of(i, first), block + (first - t) * padded_, last - first, &r.mixed[static_cast<size_t>(i * padded_)]);
      });
    }
    for_queries([&](int64_t row, int64_t i) {
      float* out = op_.y + row * op_.y_stride + (kv * n_shared_ + i % n_shared_) * op_.head_dim;
      const float *mixed = &r.mixed[static_cast<size_t>(i * padded_)], share = 1.0f / r.totals[static_cast<size_t>(i)];
      for (int64_t c = 0; c < op_.head_dim; ++c) out[c] = mixed[c] * share;
    });
  }

 private:
  struct Room {
    std::vector<float> block;     // (kTokens, padded): keys or values
    std::vector<float> queries;   // (row and head, padded)
    std::vector<float> mixed;     // the same: values weighted and summed
    std::vector<float> scores;    // (row and head, span)
    std::vector<float> totals;    // (row and head)
  };

  static Room& room() {
    static thread_local Room made;
    return made;
  }

  int64_t end_of(int64_t row) const { return step_.position + row + 1; }
  int64_t begin_of(int64_t row) const { return op_.window > 0 ? std::max<int64_t>(0, end_of(row) - op_.window) : 0; }
  float* scores_of(int64_t i, int64_t t) const { return &room().scores[static_cast<size_t>(i * span_ + t - from_)]; }

  template <class Work>
  void for_queries(Work work) const {
    for (int64_t row = 0, i = 0; row < step_.n_rows; ++row)
      for (int64_t head = 0; head < n_shared_; ++head) work(row, i++);
  }

  // Sixteen tokens in fp32. Those that are not there are what happens to lie there: nobody looks at what comes of them.
  const float* block_of(const Number* cache, int64_t t) const {
    if constexpr (sizeof(Number) == sizeof(float))
      if (padded_ == op_.head_dim && t + kTokens <= until_) return cache + t * padded_;
    float* to = room().block.data();
    for (int64_t token = t; token < std::min(t + kTokens, until_); ++token, to += padded_) {
      const Number* read = cache + token * op_.head_dim;
      int64_t c = 0;
      for (; c + kColumns <= op_.head_dim; c += kColumns) store16(to + c, load16(read + c));
      for (; c < op_.head_dim; ++c) to[c] = load1(read + c);
    }
    return room().block.data();
  }

  // Products of a query with the keys of the block.
  void score(const float* q, const float* keys, float* scores) const {
    Float16 sums[kTokens];
    TAP_UNROLL16 for (int t = 0; t < kTokens; ++t) sums[t] = load16(q) * load16(keys + t * padded_);
    for (int64_t c = kColumns; c < padded_; c += kColumns) {
      const Float16 part = load16(q + c);
      TAP_UNROLL16 for (int t = 0; t < kTokens; ++t) sums[t] += part * load16(keys + t * padded_ + c);
    }
    store16(scores, sums_across(sums) * op_.factor);
  }

  // Adds n values, weighted.
  void mix(const float* weights, const float* values, int64_t n, float* mixed) const {
    constexpr int kWide = 4;  // registers of columns that are added to at once
    int64_t c = 0;
    for (; c + kWide * kColumns <= padded_; c += kWide * kColumns) {
      Float16 sums[kWide];
      TAP_UNROLL for (int i = 0; i < kWide; ++i) sums[i] = load16(mixed + c + i * kColumns);
      for (int64_t t = 0; t < n; ++t)
        TAP_UNROLL for (int i = 0; i < kWide; ++i) sums[i] += weights[t] * load16(values + t * padded_ + c + i * kColumns);
      TAP_UNROLL for (int i = 0; i < kWide; ++i) store16(mixed + c + i * kColumns, sums[i]);
    }
    for (; c < padded_; c += kColumns) {
      Float16 sum = load16(mixed + c);
      for (int64_t t = 0; t < n; ++t) sum += weights[t] * load16(values + t * padded_ + c);
      store16(mixed + c, sum);
    }
  }

  const Op& op_;
  const Step& step_;
  const int64_t n_shared_, padded_, from_, until_, span_;
};

template <class Number>
void attend(const Op& op, const Step& step, const Memory& memory) {
  Number* keys = static_cast<Number*>(memory.keys[op.layer]);
  Number* values = static_cast<Number*>(memory.values[op.layer]);
  append(op, step, memory.capacity, op.x2, op.x2_stride, keys);
  append(op, step, memory.capacity, op.weight, op.x2_stride, values);
  Attention<Number> attention(op, step);
  for (int64_t kv = 0; kv < op.n_kv_heads; ++kv) {
    const int64_t start = kv * memory.capacity * op.head_dim;
    attention.run(keys + start, values + start, kv);
  }
}

}  // namespace
