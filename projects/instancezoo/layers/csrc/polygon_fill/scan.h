// The pixels of a filled polygon, row by row.
#pragma once

#include <cstdint>
#include <vector>

namespace instancezoo {

// Pixels [begin, end) of a row.
struct Span {
  int32_t begin;
  int32_t end;
};

// Rows [top, top + rows.size()) of a shape; the spans of a row ascend, with gaps between them.
struct SpanRows {
  int32_t top = 0;
  std::vector<std::vector<Span>> rows;
};

// Inside (even-odd) and outline of a polygon, clipped to an image of height x width pixels; exactly
// the pixels that OpenCV's fillPoly sets, with its fixed-point edges and its lines.
// vertices: V pairs of x and y.
SpanRows scan_polygon(const int32_t* vertices, int64_t num_vertices, int32_t height, int32_t width);

}  // namespace instancezoo
