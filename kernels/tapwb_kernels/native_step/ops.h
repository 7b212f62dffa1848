// The operations of a step program and what one step is asked with. Mirrored field by field in native.py.

#pragma once

#include <cstdint>
#include "../nested_linear/call.h"

namespace {

constexpr int kTopLevel = 8;

enum Kind { kEmbed, kPosition, kNorm, kLinear, kRope, kAttend, kActivate, kAdd, kScale, kGate };
enum Activation { kPlain, kSilu, kGeluTanh, kGeluErf, kRelu };

// A nested weight, all its levels. Pointers stay valid as long as the program does.
struct Weight {
  const void *step, *low;                     // (out, groups): width and lower edge of the cells
  const void *scale[3], *offset[3];           // the same of the refitted levels 1 and 2, at their index
  const uint8_t* planes[kMaxPlanes];
  const uint16_t *gain[kTopLevel + 1], *addend[kTopLevel + 1];   // (out) fp16 by level; null where nothing is put back
  const float* bias;                          // (out), or null
  int64_t cols, out, groups, group_size;
  int32_t widths[kMaxPlanes];
  int32_t n_planes, meta_dtype, refit_dtype;
  const uint16_t* by_sixteen;                 // step and low for loops of 16 outputs (call.h); the program's own
};

// What each kind reads is said where it runs (interpreter.h); x, x2 and y are workspace, n_rows rows of a stride.
struct Op {
  const float *x, *x2;
  float* y;
  int64_t x_stride, x2_stride, y_stride;
  const float *weight, *bias;                 // of a norm; table of positions; direction and cuts of a gate
  Weight linear;
  int64_t width, n_heads, n_kv_heads, head_dim, rotary_dim, window;
  int32_t kind, activation, layer, table, group, fixed_level, is_encoded, is_output, is_centred, n_levels;
  int32_t levels[kTopLevel];                  // a gate chooses from these
  float eps, factor, softcap, slope;
};

// Where the keys and values of all layers are, and the tables of cosines and sines.
struct Memory {
  void** keys;                                // by layer: (n_kv_heads, capacity, head_dim)
  void** values;
  const float** cosines;                      // by table: (at least capacity, rotary_dim)
  const float** sines;
  int64_t capacity;
  int32_t dtype;                              // kFloat32 or kFloat16, of keys and values
};

struct Step {
  const int32_t* tokens;                      // (n_rows)
  int32_t* levels;                            // (groups, n_rows); gates write theirs
  const double* corrections;                  // (groups), taken off what a gate says; null: levels were planned
  int64_t n_rows, position;                   // position of the first row
  int64_t n_outputs;                          // of the vocabulary that one row needs logits of, the first so many; 0: all
  int32_t n_threads, first_op, end_op;        // a range of the program, for comparing operation by operation
};

}  // namespace
