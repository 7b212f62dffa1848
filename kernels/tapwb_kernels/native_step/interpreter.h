// Runs the operations of a program in order. A program is a flat list: another family of models is another list.

#pragma once

#include <cstdlib>
#include <map>
#include <memory>
#include <tuple>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include "../nested_linear/pool.h"
#include "attention.h"
#include "between.h"

namespace {

// Empty where there is no room.
using LargePages = std::unique_ptr<uint16_t, void (*)(void*)>;

LargePages large_pages(size_t n) {
  constexpr size_t kPage = size_t{1} << 21;
  const size_t n_bytes = (n * sizeof(uint16_t) + kPage - 1) / kPage * kPage;
  LargePages held(static_cast<uint16_t*>(std::aligned_alloc(kPage, n_bytes)), std::free);
#if defined(__linux__)
  if (held) madvise(held.get(), n_bytes, MADV_HUGEPAGE);  // a wish: small pages do as well
#endif
  return held;
}

using LoopKey = std::tuple<std::vector<int32_t>, int32_t, int64_t>;  // widths that are read, level, group size

class Program {
 public:
  Program(const Op* ops, int64_t n_ops, int64_t n_groups) : ops_(ops, ops + n_ops), n_groups_(n_groups) { arrange_metadata(); }

  // What the loops below would read beyond their tables for.
  bool makes_sense(const Step& step, const Memory& memory) const {
    if (step.n_rows < 1 || step.n_rows > kMaxRows || step.position < 0 || step.first_op < 0 ||
        step.position + step.n_rows > memory.capacity || step.end_op > static_cast<int64_t>(ops_.size()))
      return false;
    for (const Op& op : ops_)
      if (op.kind == kEmbed)
        for (int64_t row = 0; row < step.n_rows; ++row)
          if (step.tokens[row] < 0 || step.tokens[row] >= op.linear.out) return false;
    for (int64_t i = 0; !step.corrections && i < n_groups_ * step.n_rows; ++i)
      if (step.levels[i] < 1 || step.levels[i] > kTopLevel) return false;
    return true;
  }

  void run(const Step& step, const Memory& memory) {
    for (int32_t i = step.first_op; i < step.end_op; ++i) run_one(ops_[static_cast<size_t>(i)], step, memory);
  }

 private:
  void run_one(const Op& op, const Step& step, const Memory& memory) {
    if (op.kind == kLinear) return linear(op, step);
    if (op.kind == kAttend)
      return memory.dtype == kFloat32 ? attend<float>(op, step, memory) : attend<uint16_t>(op, step, memory);
    for (int64_t row = 0; row < step.n_rows; ++row) {
      const int64_t position = step.position + row;
      switch (op.kind) {
        case kEmbed: embed(op, row, step.tokens[row]); break;
        case kPosition: add_position(op, row, position); break;
        case kNorm: norm(op, row); break;
        case kRope: rope(op, memory, row, position); break;
        case kActivate: activate(op, row); break;
        case kAdd: add(op, row); break;
        case kScale: scale(op, row); break;
        case kGate:
          if (step.corrections) step.levels[op.group * step.n_rows + row] = gate(op, row, step.corrections[op.group]);
          break;
      }
    }
  }

  // A copy of the metadata, a sixteenth of the weights' size, as loops for 16 outputs read it: to turn it about in every
  // step takes a sixth of the time of a product.
  void arrange_metadata() {
    size_t n = 0;
    const auto is_arranged = [](const Op& op) {
      return op.kind == kLinear && takes_tiles(1, op.linear.group_size) && op.linear.meta_dtype == kFloat16;
    };
    const auto size_of = [](const Weight& w) { return static_cast<size_t>((w.out + 15) / 16 * 16 * w.groups * 2); };
    for (const Op& op : ops_) n += is_arranged(op) ? size_of(op.linear) : 0;
    if (n == 0) return;
    metadata_ = large_pages(n);
    uint16_t* to = metadata_.get();
    if (to == nullptr) return;  // no room for a copy: metadata are turned about in every step
    for (Op& op : ops_) {
      if (!is_arranged(op)) continue;
      Weight& w = op.linear;
      w.by_sixteen = to;
      const uint16_t *step = static_cast<const uint16_t*>(w.step), *low = static_cast<const uint16_t*>(w.low);
      for (int64_t row = 0; row < w.out; row += 16)
        for (int64_t g = 0; g < w.groups; ++g, to += 32)
          for (int64_t r = 0; r < 16; ++r) {
            const int64_t at = std::min(row + r, w.out - 1) * w.groups + g;
            to[r] = step[at], to[16 + r] = low[at];
          }
    }
  }

  // One weight at one level, as a product is asked for.
  Call call_of(const Op& op, int level, int64_t n_rows, int32_t n_threads) {
    const Weight& w = op.linear;
    Call call;
    call.n_rows = n_rows, call.cols = w.cols, call.out = w.out, call.groups = w.groups, call.group_size = w.group_size;
    call.bits = level, call.n_threads = n_threads;
    call.x_dtype = call.y_dtype = kFloat32;
    int read = 0;
    for (call.n_planes = 0; read < level && call.n_planes < w.n_planes; ++call.n_planes) {
      call.planes[call.n_planes] = w.planes[call.n_planes];
      call.widths[call.n_planes] = w.widths[call.n_planes];
      read += w.widths[call.n_planes];
    }
    const bool is_refitted = level <= 2;
    call.first = is_refitted ? w.scale[level] : w.step;
    call.second = is_refitted ? w.offset[level] : w.low;
    call.meta_dtype = is_refitted ? w.refit_dtype : w.meta_dtype;
    call.times = is_refitted ? 1.0f : static_cast<float>(1 << (kTopLevel - level));
    call.plus = is_refitted ? 0.0f : 0.5f * call.times;
    call.by_sixteen = is_refitted ? nullptr : w.by_sixteen;
    return call;
  }

  const Plan& plan_for(const Call& call) {
    const LoopKey key{{call.widths, call.widths + call.n_planes}, call.bits, call.group_size};
    const auto found = plans_.find(key);
    return found != plans_.end() ? found->second : plans_.emplace(key, plan_of(call)).first->second;
  }

  // x to y, rows of one level together. `is_encoded`: the operation before read the same x in the same groups.
  void linear(const Op& op, const Step& step) {
    const Weight& w = op.linear;
    if (!op.is_encoded) {
      make_room(rows_, step.n_rows, w.groups, w.group_size);
      for (int64_t row = 0; row < step.n_rows; ++row)
        encode_row(op.x + row * op.x_stride, row, w.cols, w.groups, w.group_size, rows_);
      arrange_rows(step.n_rows, w.groups, w.group_size, rows_);
    }
    const int32_t* levels = op.fixed_level ? nullptr : step.levels + op.group * step.n_rows;
    for (int64_t row = 0; row < step.n_rows;) {
      const int32_t level = levels ? levels[row] : op.fixed_level;
      int64_t end = row + 1;
      while (end < step.n_rows && (!levels || levels[end] == level)) ++end;
      Call call = call_of(op, level, end - row, step.n_threads);
      // Rows of a result lie apart by its width, so only one row alone can be short.
      if (op.is_output && step.n_outputs > 0 && step.n_rows == 1) call.out = std::min(call.out, step.n_outputs);
      call.y = op.y + row * w.out;
      multiply(call, plan_for(call), RowsView(rows_, row, w.groups, w.group_size));
      for (; row < end; ++row) finish(w, level, call.out, op.y + row * w.out);
    }
  }

  static void finish(const Weight& w, int level, int64_t out, float* y) {
    if (w.gain[level]) {
      float gain[8], addend[8];
      by_eights(out, [&](int64_t i, int64_t some) {
        read_meta(w.gain[level], kFloat16, i, some, gain);
        read_meta(w.addend[level], kFloat16, i, some, addend);
        store_some(y + i, load_some(y + i, some) * (same(1.0f) + load8(gain)) + load8(addend), some);
      });
    }
    if (w.bias)
      by_eights(out, [&](int64_t i, int64_t some) {
        store_some(y + i, load_some(y + i, some) + load_some(w.bias + i, some), some);
      });
  }

  // A row of a table at its top level, times factor.
  void embed(const Op& op, int64_t row, int32_t token) {
    const Weight& w = op.linear;
    const Call call = call_of(op, kTopLevel, 1, 1);
    const int64_t padded = w.groups * w.group_size;
    codes_.resize(static_cast<size_t>(padded));
    meta_.resize(static_cast<size_t>(2 * w.groups + 16));
    float *step = meta_.data(), *low = step + w.groups + 8;
    unpack_any(call, token, codes_.data());
    read_meta(w.step, w.meta_dtype, token * w.groups, w.groups, step);
    read_meta(w.low, w.meta_dtype, token * w.groups, w.groups, low);
    float* y = op.y + row * op.y_stride;
    for (int64_t i = 0; i < w.cols; ++i) {
      const int64_t g = i / w.group_size;
      y[i] = (low[g] + step[g] * (static_cast<float>(codes_[static_cast<size_t>(i)]) + 0.5f)) * op.factor;
    }
  }

  std::vector<Op> ops_;
  LargePages metadata_{nullptr, std::free};
  int64_t n_groups_;
  std::map<LoopKey, Plan> plans_;
  Rows rows_;
  std::vector<uint8_t> codes_;
  std::vector<float> meta_;
};

}  // namespace
