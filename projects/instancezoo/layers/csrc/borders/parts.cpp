#include "parts.h"

#include <cstring>
#include <numeric>

namespace instancezoo {
namespace {

constexpr size_t kOutside = 0;

// Rows of a mask as runs that alternate background, foreground, ..., background, with one column of
// background on either side and one row of it above and below.
struct AlternatingRuns {
  std::vector<Run> runs;
  std::vector<size_t> row_starts;  // one more than there are rows

  size_t num_rows() const { return row_starts.size() - 1; }
  RowRange row(size_t index) const { return {row_starts[index], row_starts[index + 1]}; }
};

int32_t find_value(const bool* row, int32_t from, int32_t width, int value) {
  const void* found = std::memchr(row + from, value, width - from);
  return found == nullptr ? width : static_cast<int32_t>(static_cast<const bool*>(found) - row);
}

void append_row(const bool* row, int32_t y, int32_t width, AlternatingRuns& found) {
  found.row_starts.push_back(found.runs.size());
  int32_t background = -1;
  for (int32_t begin = find_value(row, 0, width, 1); begin < width;) {
    const int32_t end = find_value(row, begin, width, 0);
    found.runs.push_back({y, background, begin});
    found.runs.push_back({y, begin, end});
    background = end;
    begin = find_value(row, end, width, 1);
  }
  found.runs.push_back({y, background, width + 1});
}

void append_empty_row(int32_t y, int32_t width, AlternatingRuns& found) {
  found.row_starts.push_back(found.runs.size());
  found.runs.push_back({y, -1, width + 1});
}

// The rows that hold foreground, with an empty row above and below.
AlternatingRuns find_runs(const bool* mask, int32_t height, int32_t width) {
  AlternatingRuns found;
  const size_t num_pixels = static_cast<size_t>(height) * width;
  if (num_pixels == 0) {
    return found;
  }
  const auto* first = static_cast<const bool*>(std::memchr(mask, 1, num_pixels));
  if (first == nullptr) {
    return found;
  }
  const auto top = static_cast<int32_t>((first - mask) / width);
  append_empty_row(top - 1, width, found);
  size_t filled = 0;  // number of runs up to the last row with foreground
  size_t filled_rows = 0;
  for (int32_t y = top; y < height; ++y) {
    append_row(mask + static_cast<size_t>(y) * width, y, width, found);
    if (found.runs.size() - found.row_starts.back() > 1) {
      filled = found.runs.size();
      filled_rows = found.row_starts.size();
    }
  }
  found.runs.resize(filled);
  found.row_starts.resize(filled_rows);
  append_empty_row(found.runs.back().y + 1, width, found);
  found.row_starts.push_back(found.runs.size());
  return found;
}

// Disjoint sets whose representative is their first member.
class DisjointSets {
 public:
  explicit DisjointSets(size_t size) : parents_(size) {
    std::iota(parents_.begin(), parents_.end(), size_t{0});
  }

  size_t find(size_t member) {
    while (parents_[member] != member) {
      parents_[member] = parents_[parents_[member]];
      member = parents_[member];
    }
    return member;
  }

  void join(size_t one, size_t other) {
    one = find(one);
    other = find(other);
    parents_[one < other ? other : one] = one < other ? one : other;
  }

 private:
  std::vector<size_t> parents_;
};

// For each run the first run of the outermost part that it belongs to or lies in; kOutside for
// background that nothing encloses.
std::vector<size_t> find_outermost(const AlternatingRuns& rows) {
  DisjointSets sets(rows.runs.size());
  const auto join = [&](size_t one, size_t other) { sets.join(one, other); };
  for (size_t row = 1; row < rows.num_rows(); ++row) {
    const RowRange upper = rows.row(row - 1);
    const RowRange lower = rows.row(row);
    visit_neighbours<false, 2>(rows.runs, upper, lower, join);
    visit_neighbours<true, 2>(rows.runs, {upper.begin + 1, upper.end}, {lower.begin + 1, lower.end},
                              join);
  }
  std::vector<size_t> outermost(rows.runs.size());
  for (size_t row = 0; row < rows.num_rows(); ++row) {
    const RowRange range = rows.row(row);
    for (size_t run = range.begin; run < range.end; ++run) {
      const size_t first = sets.find(run);
      if (first != run) {
        outermost[run] = outermost[first];
      } else if (run == kOutside) {
        outermost[run] = kOutside;
      } else {
        // The pixel left of a region's first pixel belongs to the region around it.
        const size_t around = outermost[run - 1];
        outermost[run] = around == kOutside ? run : around;
      }
    }
  }
  return outermost;
}

}  // namespace

std::vector<Part> find_filled_parts(const bool* mask, int32_t height, int32_t width) {
  std::vector<Part> parts;
  const AlternatingRuns rows = find_runs(mask, height, width);
  if (rows.runs.empty()) {
    return parts;
  }
  const std::vector<size_t> outermost = find_outermost(rows);
  std::vector<size_t> part_of(rows.runs.size());
  for (size_t run = 0; run < rows.runs.size(); ++run) {
    const size_t first = outermost[run];
    if (first == kOutside) {
      continue;
    }
    if (first == run) {
      part_of[run] = parts.size();
      parts.emplace_back();
    }
    Part& part = parts[part_of[first]];
    if (outermost[run - 1] == first && !part.empty() && part.back().y == rows.runs[run].y) {
      part.back().end = rows.runs[run].end;  // a hole, or what follows it
    } else {
      part.push_back(rows.runs[run]);
    }
  }
  return parts;
}

}  // namespace instancezoo
