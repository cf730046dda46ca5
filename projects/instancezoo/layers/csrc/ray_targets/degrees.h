// The whole degree in which a pixel is seen, and the degrees that a ray takes. For CPU and CUDA.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include <c10/macros/Macros.h>

namespace instancezoo {

constexpr int32_t kFullTurn = 360;
constexpr float kMissed = 1e-6f;
constexpr int32_t kFarthest = 1 << 15;  // two squares of smaller numbers add up to an int32

// Tangents of 0, 1, ..., 45 degrees and infinity. They are irrational between the ends, and no
// ratio of pixels comes within rounding of them: comparing with them is exact.
struct Tangents {
  double values[47];

  static Tangents make() {
    Tangents tangents{};
    for (int degree = 1; degree < 45; ++degree) {
      tangents.values[degree] = std::tan(degree * (3.14159265358979323846 / 180));
    }
    tangents.values[45] = 1;
    tangents.values[46] = std::numeric_limits<double>::infinity();
    return tangents;
  }
};

// Direction of (x, y), from down (+y) by way of right (+x), rounded down; 0 for (0, 0).
C10_HOST_DEVICE inline int32_t find_degree(int32_t x, int32_t y, const Tangents& tangents) {
  const bool odd = (x > 0 && y <= 0) || (x < 0 && y >= 0);  // second and fourth quarter
  const int32_t quarter = odd ? (x > 0 ? 1 : 3) : (y < 0 ? 2 : 0);
  const int32_t wide = x < 0 ? -x : x;
  const int32_t tall = y < 0 ? -y : y;
  const int32_t across = odd ? tall : wide;
  const int32_t along = odd ? wide : tall;
  // Fold into the eighth next to an axis.
  const int32_t small = across < along ? across : along;
  const int32_t large = across < along ? along : across;
  const double ratio = large > 0 ? static_cast<double>(small) / large : 0;
  // An estimate within a quarter of a degree; one comparison on either side makes it exact.
  auto degree = static_cast<int32_t>(ratio * (45 + 15.64 * (1 - ratio)));
  degree -= ratio < tangents.values[degree];
  degree += ratio >= tangents.values[degree + 1];
  const bool whole = small == 0 || small == large;
  return quarter * 90 + (across <= along ? degree : 90 - degree - (whole ? 0 : 1));
}

// Distance of a ray from the squared distances (-1 for none) of all degrees: that of its own degree
// or of the nearest one with a distance, the larger first. `start` is the ray's degree.
C10_HOST_DEVICE inline float pick_distance(const int32_t* squares, int32_t start, bool wrap) {
  constexpr int32_t kReach = 3;
  for (int32_t step = 0; step <= kReach; ++step) {
    const int32_t larger = (start + step) % kFullTurn;
    if (squares[larger] >= 0) {
      return std::sqrt(static_cast<float>(squares[larger]));
    }
    // parity: the published targets do not look below degree 0 for the first ray.
    if (start == 0 && !wrap) {
      continue;
    }
    const int32_t smaller = (start - step + kFullTurn) % kFullTurn;
    if (squares[smaller] >= 0) {
      return std::sqrt(static_cast<float>(squares[smaller]));
    }
  }
  return kMissed;
}

}  // namespace instancezoo
