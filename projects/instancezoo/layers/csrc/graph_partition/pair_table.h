// A hash table from unordered pairs of nodes to numbers, without removal.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace instancezoo {

class PairTable {
 public:
  explicit PairTable(size_t num_pairs) { resize(num_pairs * 2 + 2); }

  // The number of a pair; -1 if it had none, then it has `number` (0 or more) from now on.
  int32_t find_or_insert(int32_t a, int32_t b, int32_t number) {
    if (2 * (size_ + 1) > keys_.size()) {
      resize(2 * keys_.size());
    }
    const uint64_t key = make_key(a, b);
    const size_t place = find_place(key);
    if (numbers_[place] >= 0) {
      return numbers_[place];
    }
    keys_[place] = key;
    numbers_[place] = number;
    ++size_;
    return -1;
  }

  bool contains(int32_t a, int32_t b) const { return numbers_[find_place(make_key(a, b))] >= 0; }

 private:
  static uint64_t make_key(int32_t a, int32_t b) {
    if (a > b) {
      std::swap(a, b);
    }
    return (static_cast<uint64_t>(a) << 32) | static_cast<uint32_t>(b);
  }

  // Where a key is or would be.
  size_t find_place(uint64_t key) const {
    size_t place = static_cast<size_t>((key * 0x9E3779B97F4A7C15ULL) >> shift_);  // Fibonacci's
    while (numbers_[place] >= 0 && keys_[place] != key) {
      place = (place + 1) & (keys_.size() - 1);
    }
    return place;
  }

  void resize(size_t least) {
    int bits = 4;
    while ((size_t{1} << bits) < least) {
      ++bits;
    }
    const std::vector<uint64_t> keys = std::exchange(keys_, std::vector<uint64_t>());
    const std::vector<int32_t> numbers = std::exchange(numbers_, std::vector<int32_t>());
    shift_ = 64 - bits;
    keys_.assign(size_t{1} << bits, 0);
    numbers_.assign(size_t{1} << bits, -1);
    for (size_t old = 0; old < keys.size(); ++old) {
      if (numbers[old] >= 0) {
        const size_t place = find_place(keys[old]);
        keys_[place] = keys[old];
        numbers_[place] = numbers[old];
      }
    }
  }

  std::vector<uint64_t> keys_;
  std::vector<int32_t> numbers_;
  size_t size_ = 0;
  int shift_ = 0;
};

}  // namespace instancezoo
