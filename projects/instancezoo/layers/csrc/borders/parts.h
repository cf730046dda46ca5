// A mask as runs of pixels, and its parts with their holes filled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace instancezoo {

// Pixels [begin, end) of row y.
struct Run {
  int32_t y;
  int32_t begin;
  int32_t end;
};

// Indices [begin, end) of the runs of one row.
struct RowRange {
  size_t begin;
  size_t end;
};

// Calls visit(upper, lower) for the indices of runs of two neighbouring rows that share a column
// or, if `diagonal`, touch at a corner. Takes every `stride`-th run; these must ascend with gaps.
template <bool diagonal, size_t stride, typename Visit>
void visit_neighbours(const std::vector<Run>& runs, RowRange upper, RowRange lower,
                      const Visit& visit) {
  constexpr int32_t kSlack = diagonal ? 1 : 0;
  while (upper.begin < upper.end && lower.begin < lower.end) {
    const Run& above = runs[upper.begin];
    const Run& below = runs[lower.begin];
    if (above.begin < below.end + kSlack && below.begin < above.end + kSlack) {
      visit(upper.begin, lower.begin);
    }
    (above.end < below.end ? upper : lower).begin += stride;
  }
}

// Runs of one part, row by row.
using Part = std::vector<Run>;

// The 8-connected parts of a mask that no other part encloses, in the order of their first pixels,
// with all that they enclose filled in. Cost: one pass over the pixels at the speed of memchr; the
// rest processes runs, not pixels.
std::vector<Part> find_filled_parts(const bool* mask, int32_t height, int32_t width);

}  // namespace instancezoo
