#include "runs.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace instancezoo {
namespace {

void check_input(const at::Tensor& positions, const at::Tensor& lengths, int64_t num_pixels) {
  TORCH_CHECK(positions.dim() == 1 && positions.scalar_type() == at::kLong && lengths.dim() == 1 &&
                  lengths.scalar_type() == at::kLong,
              "positions must be (E,) int64 and lengths (M,) int64, got ", positions.sizes(), " ",
              positions.scalar_type(), " and ", lengths.sizes(), " ", lengths.scalar_type());
  const auto* position = positions.const_data_ptr<int64_t>();
  const auto* length = lengths.const_data_ptr<int64_t>();
  int64_t begin = 0;
  for (int64_t mask = 0; mask < lengths.size(0); ++mask) {
    const int64_t count = length[mask];
    TORCH_CHECK(count >= 0 && count <= positions.size(0) - begin,
                "lengths must be of the positions, ", positions.size(0), " in all");
    for (int64_t end = begin; end < begin + count; ++end) {
      const int64_t least = end > begin ? position[end - 1] : 0;
      TORCH_CHECK(least <= position[end] && position[end] <= num_pixels,
                  "positions must ascend within ", num_pixels, " pixels");
    }
    begin += count;
  }
  TORCH_CHECK(begin == positions.size(0), "lengths must be of the positions, ", positions.size(0),
              " in all");
}

// Five bits to a character, the lowest first; bit 5 says that more follow, bit 4 of the last one is
// the sign.
void append_number(int64_t number, std::vector<uint8_t>& text) {
  bool more = true;
  while (more) {
    int64_t character = number & 31;
    number >>= 5;
    more = character & 16 ? number != -1 : number != 0;
    character |= more ? 32 : 0;
    text.push_back(static_cast<uint8_t>(character + 48));
  }
}

class Packer {
 public:
  explicit Packer(std::vector<uint8_t>& text) : text_(text) {}

  // From the fourth run on, the difference from the run before last is stored.
  void add_run(int64_t count) {
    append_number(num_runs_ > 2 ? count - before_last_ : count, text_);
    before_last_ = last_;
    last_ = count;
    ++num_runs_;
  }

 private:
  std::vector<uint8_t>& text_;
  int64_t num_runs_ = 0;
  int64_t last_ = 0;
  int64_t before_last_ = 0;
};

// Writes masks row by row, which a processor does faster than column by column.
class Filler {
 public:
  Filler(int64_t height, int64_t width) : height_(height), width_(width), next_(height + 1) {
    inside_.resize(width, 0);
  }

  // mask: height x width, all false.
  void fill(const int64_t* position, int64_t length, bool* mask) {
    if (length == 0 || height_ == 0) {
      return;
    }
    find_changes(position, length);
    sort_changes();
    const int64_t left = position[0] / height_;
    const int64_t right = std::min((position[length - 1] - 1) / height_ + 1, width_);
    size_t change = 0;
    for (int64_t y = 0; y < height_; ++y) {
      for (; change < next_[y]; ++change) {
        inside_[sorted_[change]] ^= 1;
      }
      if (right > left) {
        std::memcpy(mask + y * width_ + left, inside_.data() + left, right - left);
      }
    }
    std::fill(inside_.begin(), inside_.end(), 0);
  }

 private:
  struct Change {
    int64_t y;
    int64_t x;
  };

  // Where a column changes from one row to the next; every column begins outside.
  void find_changes(const int64_t* position, int64_t length) {
    changes_.clear();
    for (int64_t run = 0; run < length; run += 2) {
      int64_t x = position[run] / height_;
      int64_t y = position[run] % height_;
      for (int64_t left = position[run + 1] - position[run]; left > 0; ++x, y = 0) {
        const int64_t bottom = std::min(y + left, height_);
        left -= bottom - y;
        changes_.push_back({y, x});
        if (bottom < height_) {
          changes_.push_back({bottom, x});
        }
      }
    }
  }

  // Columns of the changes, by rows; `next_` becomes the end of each row's.
  void sort_changes() {
    std::fill(next_.begin(), next_.end(), 0);
    for (const Change change : changes_) {
      ++next_[change.y + 1];
    }
    for (int64_t y = 0; y < height_; ++y) {
      next_[y + 1] += next_[y];
    }
    sorted_.resize(changes_.size());
    for (const Change change : changes_) {
      sorted_[next_[change.y]++] = change.x;
    }
  }

  const int64_t height_;
  const int64_t width_;
  std::vector<size_t> next_;
  std::vector<uint8_t> inside_;
  std::vector<Change> changes_;
  std::vector<int64_t> sorted_;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> pack_runs_cpu(const at::Tensor& positions,
                                                 const at::Tensor& lengths, int64_t num_pixels) {
  const at::Tensor packed_positions = positions.contiguous();
  const at::Tensor packed_lengths = lengths.contiguous();
  check_input(packed_positions, packed_lengths, num_pixels);
  const auto* position = packed_positions.const_data_ptr<int64_t>();
  const auto* length = packed_lengths.const_data_ptr<int64_t>();
  at::Tensor sizes = at::empty({lengths.size(0)}, at::kLong);
  auto* size = sizes.mutable_data_ptr<int64_t>();
  std::vector<uint8_t> text;
  text.reserve(2 * positions.size(0) + 8 * lengths.size(0));
  for (int64_t mask = 0; mask < lengths.size(0); ++mask) {
    const size_t before = text.size();
    Packer packer(text);
    int64_t last = 0;
    for (const int64_t* stop = position + length[mask]; position < stop; ++position) {
      packer.add_run(*position - last);
      last = *position;
    }
    // A run up to the last pixel has no background after it.
    if (last < num_pixels || length[mask] == 0) {
      packer.add_run(num_pixels - last);
    }
    size[mask] = static_cast<int64_t>(text.size() - before);
  }
  at::Tensor characters = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::copy(text.begin(), text.end(), characters.mutable_data_ptr<uint8_t>());
  return {characters, sizes};
}

at::Tensor fill_runs_cpu(const at::Tensor& positions, const at::Tensor& lengths, int64_t height,
                         int64_t width) {
  TORCH_CHECK(height >= 0 && width >= 0, "no image is ", height, " x ", width, " pixels");
  const at::Tensor packed_positions = positions.contiguous();
  const at::Tensor packed_lengths = lengths.contiguous();
  check_input(packed_positions, packed_lengths, height * width);
  const auto* position = packed_positions.const_data_ptr<int64_t>();
  const auto* length = packed_lengths.const_data_ptr<int64_t>();
  at::Tensor masks = at::zeros({lengths.size(0), height, width}, at::kBool);
  auto* mask = masks.mutable_data_ptr<bool>();
  Filler filler(height, width);
  for (int64_t index = 0; index < lengths.size(0); ++index, mask += height * width) {
    TORCH_CHECK(length[index] % 2 == 0, "every run needs a begin and an end");
    filler.fill(position, length[index], mask);
    position += length[index];
  }
  return masks;
}

TORCH_LIBRARY_IMPL(instancezoo, CPU, m) {
  m.impl("pack_runs", &pack_runs_cpu);
  m.impl("fill_runs", &fill_runs_cpu);
}

}  // namespace instancezoo
