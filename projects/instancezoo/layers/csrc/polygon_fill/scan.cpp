#include "scan.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace instancezoo {
namespace {

// OpenCV's fixed-point columns.
constexpr int kShift = 16;
constexpr int64_t kOne = int64_t{1} << kShift;

struct Point {
  int64_t x;
  int64_t y;
};

struct Image {
  int64_t height;
  int64_t width;
};

enum Side { kLeft = 1, kRight = 2, kAbove = 4, kBelow = 8 };

int find_sides(Point point, Image image) {
  return (point.x < 0 ? kLeft : 0) | (point.x >= image.width ? kRight : 0) |
         (point.y < 0 ? kAbove : 0) | (point.y >= image.height ? kBelow : 0);
}

// Moves `point` along the line to `other` into the image's rows, then into its columns.
void move_to_rows(Point& point, Point other, int sides, Image image) {
  const int64_t y = sides & kAbove ? 0 : image.height - 1;
  point.x += static_cast<int64_t>(static_cast<double>(y - point.y) * (other.x - point.x) /
                                  (other.y - point.y));
  point.y = y;
}

void move_to_columns(Point& point, Point other, int sides, Image image) {
  const int64_t x = sides & kLeft ? 0 : image.width - 1;
  point.y += static_cast<int64_t>(static_cast<double>(x - point.x) * (other.y - point.y) /
                                  (other.x - point.x));
  point.x = x;
}

// Clips a line to the image, with OpenCV's order and rounding; false if nothing is left, although
// the ends may have moved.
bool clip_line(Point& one, Point& other, Image image) {
  constexpr int kRows = kAbove | kBelow;
  int one_sides = find_sides(one, image);
  int other_sides = find_sides(other, image);
  const auto crosses = [&] {
    return (one_sides & other_sides) == 0 && (one_sides | other_sides) != 0;
  };
  if (!crosses()) {
    return (one_sides | other_sides) == 0;
  }
  if (one_sides & kRows) {
    move_to_rows(one, other, one_sides, image);
    one_sides = find_sides(one, image);
  }
  if (other_sides & kRows) {
    move_to_rows(other, one, other_sides, image);
    other_sides = find_sides(other, image);
  }
  if (crosses()) {
    if (one_sides) {
      move_to_columns(one, other, one_sides, image);
      one_sides = 0;
    }
    if (other_sides) {
      move_to_columns(other, one, other_sides, image);
      other_sides = 0;
    }
  }
  return (one_sides | other_sides) == 0;
}

class Scanner {
 public:
  Scanner(Image image, int64_t top, int64_t bottom) : image_(image), top_(top) {
    spans_.resize(std::max<int64_t>(0, bottom - top));
    crossings_.resize(spans_.size());
  }

  void add_side(Point from, Point to) {
    Point begin = from;
    Point end = to;
    if (clip_line(begin, end, image_)) {
      draw_line(begin, end);
    }
    add_edge(from, to, begin, end);
  }

  SpanRows finish() {
    for (size_t row = 0; row < spans_.size(); ++row) {
      fill_row(crossings_[row], spans_[row]);
      join_spans(spans_[row]);
    }
    return {static_cast<int32_t>(top_), std::move(spans_)};
  }

 private:
  void add_span(int64_t y, int64_t begin, int64_t end) {
    spans_[y - top_].push_back({static_cast<int32_t>(begin), static_cast<int32_t>(end)});
  }

  // Bresenham's line, from left to right.
  void draw_line(Point from, Point to) {
    if (to.x < from.x) {
      std::swap(from, to);
    }
    const int64_t columns = to.x - from.x;
    const int64_t rows = std::abs(to.y - from.y);
    const int64_t step = to.y < from.y ? -1 : 1;
    if (rows > columns) {
      int64_t error = rows - 2 * columns;
      int64_t x = from.x;
      for (int64_t count = 0; count <= rows; ++count) {
        add_span(from.y + step * count, x, x + 1);
        const bool moves = error < 0;
        x += moves;
        error += (moves ? 2 * rows : 0) - 2 * columns;
      }
      return;
    }
    int64_t error = columns - 2 * rows;
    int64_t begin = from.x;
    int64_t y = from.y;
    for (int64_t x = from.x; x < to.x; ++x) {
      if (error < 0) {
        add_span(y, begin, x + 1);
        begin = x + 1;
        y += step;
        error += 2 * columns;
      }
      error -= 2 * rows;
    }
    add_span(y, begin, to.x + 1);
  }

  // begin, end: the part of the side within the image.
  void add_edge(Point from, Point to, Point begin, Point end) {
    if (from.y == to.y) {
      return;
    }
    if (begin.y == end.y) {
      begin.y = from.y;
      end.y = to.y;
    }
    const Point first{begin.x * kOne, begin.y};
    const Point last{end.x * kOne, end.y};
    const int64_t slope = (last.x - first.x) / (last.y - first.y);
    // The slope is truncated, so that columns depend on the end from which they are counted.
    const Point upper = from.y < to.y ? first : last;
    const auto [top, bottom] = std::minmax(from.y, to.y);
    const int64_t stop = std::min(bottom, top_ + static_cast<int64_t>(spans_.size()));
    for (int64_t y = std::max(top, top_); y < stop; ++y) {
      crossings_[y - top_].push_back(upper.x + (y - upper.y) * slope);
    }
  }

  void fill_row(std::vector<int64_t>& crossings, std::vector<Span>& spans) const {
    std::sort(crossings.begin(), crossings.end());
    for (size_t pair = 0; pair + 1 < crossings.size(); pair += 2) {
      const int64_t begin = std::max<int64_t>((crossings[pair] + kOne - 1) >> kShift, 0);
      const int64_t end = std::min((crossings[pair + 1] >> kShift) + 1, image_.width);
      if (begin < end) {
        spans.push_back({static_cast<int32_t>(begin), static_cast<int32_t>(end)});
      }
    }
  }

  static void join_spans(std::vector<Span>& spans) {
    std::sort(spans.begin(), spans.end(),
              [](Span one, Span other) { return one.begin < other.begin; });
    size_t last = 0;
    for (size_t index = 1; index < spans.size(); ++index) {
      if (spans[index].begin <= spans[last].end) {
        spans[last].end = std::max(spans[last].end, spans[index].end);
      } else {
        spans[++last] = spans[index];
      }
    }
    if (!spans.empty()) {
      spans.resize(last + 1);
    }
  }

  Image image_;
  int64_t top_;
  std::vector<std::vector<Span>> spans_;
  std::vector<std::vector<int64_t>> crossings_;
};

}  // namespace

SpanRows scan_polygon(const int32_t* vertices, int64_t num_vertices, int32_t height,
                      int32_t width) {
  if (num_vertices == 0 || height == 0 || width == 0) {
    return {};
  }
  int64_t top = height;
  int64_t bottom = 0;
  for (int64_t index = 0; index < num_vertices; ++index) {
    const int64_t y = vertices[2 * index + 1];
    top = std::min(top, y);
    bottom = std::max(bottom, y + 1);
  }
  Scanner scanner({height, width}, std::max<int64_t>(top, 0), std::min<int64_t>(bottom, height));
  Point before{vertices[2 * num_vertices - 2], vertices[2 * num_vertices - 1]};
  for (int64_t index = 0; index < num_vertices; ++index) {
    const Point here{vertices[2 * index], vertices[2 * index + 1]};
    scanner.add_side(before, here);
    before = here;
  }
  return scanner.finish();
}

}  // namespace instancezoo
