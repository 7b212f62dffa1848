// One decode step of a whole model in one call: the operations of its program, one after the other (README.md). The
// product by itself is in the same library, so that a machine builds one.

#include "../nested_linear/native.cpp"
#include "interpreter.h"

extern "C" {

// Bumped with every change of ops.h.
int32_t tap_step_interface() { return 3; }

// Sizes of the structures, so that a caller whose fields lie otherwise is refused.
int64_t tap_step_sizes(int32_t which) {
  const int64_t sizes[] = {sizeof(Weight), sizeof(Op), sizeof(Memory), sizeof(Step)};
  return which >= 0 && which < 4 ? sizes[which] : -1;
}

// The list is copied; what its pointers point to must outlive the program.
void* tap_step_make(const Op* ops, int64_t n_ops, int64_t n_groups) { return new Program(ops, n_ops, n_groups); }

void tap_step_free(void* program) { delete static_cast<Program*>(program); }

// 0 when done, 1 when the step does not make sense. One step of a program at a time.
int32_t tap_step_run(void* program, const Step* step, const Memory* memory) {
  Program& made = *static_cast<Program*>(program);
  if (!made.makes_sense(*step, *memory)) return 1;
  made.run(*step, *memory);
  return 0;
}

// Vectorized functions by themselves, for their tests: 0 exp, 1 tanh, 2 sigmoid, 3 float to half and back.
void tap_step_function(int32_t which, const float* x, float* y, int64_t n) {
  by_eights(n, [&](int64_t i, int64_t some) {
    const Float8 v = load_some(x + i, some);
    if (which == 3)
      for (int64_t j = 0; j < some; ++j) y[i + j] = any_half_to_float(float_to_half(x[i + j]));
    else store_some(y + i, which == 0 ? exp8(v) : which == 1 ? tanh8(v) : sigmoid8(v), some);
  });
}
}
