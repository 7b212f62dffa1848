// Rows of activations times a nested weight, read straight from the planes of one level (maths in README.md).

#include <string>
#include "pool.h"

extern "C" {

// Bumped with every change of Call.
int32_t tap_interface() { return 4; }

const char* tap_instructions() {
  static const std::string found = std::string(kInstructions) + (has_tiles() ? " and AMX tiles" : "");
  return found.c_str();
}

// Largest group of columns with which more than kMaxRows rows are taken; 0 where they never are.
int32_t tap_panel_group() { return kHasPanels ? kLargestPanelGroup : 0; }

// Whether more than kMaxRows rows can be rounded to bf16 in groups of this size (prompt.h).
int32_t tap_can_round(int64_t group_size) { return kHasPrompts && is_wide(group_size) && has_tiles(); }

// 0 when done, 1 when the call does not make sense.
int32_t tap_nested_linear(const Call* call) {
  if (call->n_rows < 1 || (call->n_rows > kMaxRows && !takes_panels(*call)) || call->n_planes < 1 || call->n_planes > kMaxPlanes ||
      call->bits < 1 || call->bits > 8 || call->group_size % 8 || call->groups * call->group_size < call->cols)
    return 1;
  static thread_local Rows rows;
  encode_rows(*call, rows);
  multiply(*call, plan_of(*call), RowsView(rows, 0, call->groups, call->group_size));
  return 0;
}
}
