#include "graph_partition.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "pair_table.h"

namespace instancezoo {
namespace {

struct Edge {
  int32_t first;  // the smaller end
  int32_t second;
  double weight;
};

// Checks the input and adds parallel edges, in their order.
std::vector<Edge> read_edges(const at::Tensor& edges, const at::Tensor& weights,
                             int64_t num_nodes) {
  TORCH_CHECK(edges.dim() == 2 && edges.size(1) == 2 && edges.scalar_type() == at::kLong &&
                  weights.dim() == 1 && weights.scalar_type() == at::kDouble &&
                  weights.size(0) == edges.size(0),
              "edges must be (E, 2) int64 and weights (E,) double, got ", edges.sizes(), " ",
              edges.scalar_type(), " and ", weights.sizes(), " ", weights.scalar_type());
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  TORCH_CHECK(num_nodes >= 0 && num_nodes < kMost && edges.size(0) < kMost,
              "a graph must have fewer than 2^31 nodes and edges");
  const at::Tensor packed_edges = edges.contiguous();
  const at::Tensor packed_weights = weights.contiguous();
  const auto* end = packed_edges.const_data_ptr<int64_t>();
  const auto* weight = packed_weights.const_data_ptr<double>();
  const auto num_edges = static_cast<size_t>(edges.size(0));
  std::vector<Edge> unique;
  unique.reserve(num_edges);
  PairTable table(num_edges);
  for (size_t index = 0; index < num_edges; ++index) {
    const auto [low, high] = std::minmax(end[2 * index], end[2 * index + 1]);
    TORCH_CHECK(0 <= low && high < num_nodes, "edges must be between the ", num_nodes, " nodes");
    if (low == high) {
      continue;
    }
    const auto first = static_cast<int32_t>(low);
    const auto second = static_cast<int32_t>(high);
    const int32_t known =
        table.find_or_insert(first, second, static_cast<int32_t>(unique.size()));
    if (known >= 0) {
      unique[known].weight += weight[index];
    } else {
      unique.push_back({first, second, weight[index]});
    }
  }
  return unique;
}

// Disjoint sets of nodes; the caller chooses which root stays.
class Forest {
 public:
  explicit Forest(int64_t num_nodes) : parents_(static_cast<size_t>(num_nodes)) {
    std::iota(parents_.begin(), parents_.end(), 0);
  }

  int32_t find(int32_t node) {
    while (parents_[node] != node) {
      parents_[node] = parents_[parents_[node]];
      node = parents_[node];
    }
    return node;
  }

  void join(int32_t root, int32_t below) { parents_[below] = root; }

  at::Tensor number_parts() {
    const auto num_nodes = static_cast<int32_t>(parents_.size());
    at::Tensor parts = at::empty({num_nodes}, at::kLong);
    auto* part = parts.mutable_data_ptr<int64_t>();
    std::vector<int64_t> numbers(parents_.size(), -1);
    int64_t num_parts = 0;
    for (int32_t node = 0; node < num_nodes; ++node) {
      int64_t& number = numbers[find(node)];
      if (number < 0) {
        number = num_parts++;
      }
      part[node] = number;
    }
    return parts;
  }

 private:
  std::vector<int32_t> parents_;
};

// An edge as it was when it entered the heap; what changes later enters again.
struct Candidate {
  double weight;
  int32_t low;  // smallest nodes of both parts
  int32_t high;
  int32_t edge;
};

bool comes_later(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight < b.weight
                              : std::tie(a.low, a.high) > std::tie(b.low, b.high);
}

class Contraction {
 public:
  Contraction(std::vector<Edge> edges, int64_t num_nodes)
      : edges_(std::move(edges)),
        is_alive_(edges_.size(), 1),
        links_(static_cast<size_t>(num_nodes)),
        smallest_(static_cast<size_t>(num_nodes)),
        forest_(num_nodes),
        table_(edges_.size()) {
    std::iota(smallest_.begin(), smallest_.end(), 0);
    for (size_t index = 0; index < edges_.size(); ++index) {
      const Edge& edge = edges_[index];
      const auto number = static_cast<int32_t>(index);
      table_.find_or_insert(edge.first, edge.second, number);
      links_[edge.first].push_back(number);
      links_[edge.second].push_back(number);
      if (edge.weight > 0) {
        heap_.push_back(make_candidate(number));
      }
    }
    std::make_heap(heap_.begin(), heap_.end(), comes_later);
  }

  at::Tensor run() {
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), comes_later);
      const Candidate candidate = heap_.back();
      heap_.pop_back();
      if (is_current(candidate)) {
        contract(candidate.edge);
      }
    }
    return forest_.number_parts();
  }

 private:
  Candidate make_candidate(int32_t index) const {
    const Edge& edge = edges_[index];
    const auto [low, high] = std::minmax(smallest_[edge.first], smallest_[edge.second]);
    return {edge.weight, low, high, index};
  }

  bool is_current(const Candidate& candidate) const {
    if (!is_alive_[candidate.edge]) {
      return false;
    }
    const Candidate now = make_candidate(candidate.edge);
    return now.weight == candidate.weight && now.low == candidate.low &&
           now.high == candidate.high;
  }

  void push(int32_t index) {
    if (edges_[index].weight > 0) {
      heap_.push_back(make_candidate(index));
      std::push_heap(heap_.begin(), heap_.end(), comes_later);
    }
  }

  // The end with fewer links moves to the other, whichever has the smallest node.
  void contract(int32_t index) {
    int32_t root = edges_[index].first;
    int32_t below = edges_[index].second;
    if (links_[root].size() < links_[below].size()) {
      std::swap(root, below);
    }
    is_alive_[index] = 0;
    forest_.join(root, below);
    const bool is_renamed = smallest_[below] < smallest_[root];
    smallest_[root] = std::min(smallest_[root], smallest_[below]);
    for (const int32_t link : links_[below]) {
      if (is_alive_[link]) {
        const int32_t changed = move_link(link, below, root);
        if (!is_renamed) {
          push(changed);
        }
      }
    }
    std::vector<int32_t>().swap(links_[below]);
    if (is_renamed) {
      push_all(root);
    }
  }

  // Gives a link of `below` to `root`, or adds it to the link there is; returns which one it is.
  int32_t move_link(int32_t link, int32_t below, int32_t root) {
    Edge& edge = edges_[link];
    const int32_t other = edge.first == below ? edge.second : edge.first;
    const int32_t known = table_.find_or_insert(root, other, link);
    if (known >= 0) {
      edges_[known].weight += edge.weight;
      is_alive_[link] = 0;
      return known;
    }
    edge.first = root;
    edge.second = other;
    links_[root].push_back(link);
    return link;
  }

  // The rank among equal weights depends on the smallest node.
  void push_all(int32_t root) {
    std::vector<int32_t>& links = links_[root];
    const auto is_gone = [&](int32_t link) { return !is_alive_[link]; };
    links.erase(std::remove_if(links.begin(), links.end(), is_gone), links.end());
    for (const int32_t link : links) {
      push(link);
    }
  }

  std::vector<Edge> edges_;  // between roots, as long as they are alive
  std::vector<uint8_t> is_alive_;
  std::vector<std::vector<int32_t>> links_;  // edges of each root, and some that are gone
  std::vector<int32_t> smallest_;            // node of each root's part
  Forest forest_;
  PairTable table_;  // pairs of roots to edges; pairs with a former root stay, unused
  std::vector<Candidate> heap_;
};

class MutexWatershed {
 public:
  MutexWatershed(std::vector<Edge> edges, int64_t num_nodes)
      : edges_(std::move(edges)),
        excluded_(static_cast<size_t>(num_nodes)),
        forest_(num_nodes),
        table_(edges_.size()) {
    const auto is_idle = [](const Edge& edge) { return !(std::abs(edge.weight) > 0); };  // or NaN
    edges_.erase(std::remove_if(edges_.begin(), edges_.end(), is_idle), edges_.end());
    std::sort(edges_.begin(), edges_.end(), [](const Edge& a, const Edge& b) {
      const double size_a = std::abs(a.weight);
      const double size_b = std::abs(b.weight);
      return size_a != size_b ? size_a > size_b
                              : std::tie(a.first, a.second) < std::tie(b.first, b.second);
    });
  }

  at::Tensor run() {
    for (const Edge& edge : edges_) {
      const int32_t first = forest_.find(edge.first);
      const int32_t second = forest_.find(edge.second);
      if (first == second) {
        continue;
      }
      if (edge.weight < 0) {
        exclude(first, second);
      } else if (!table_.contains(first, second)) {
        join(first, second);
      }
    }
    return forest_.number_parts();
  }

 private:
  void exclude(int32_t first, int32_t second) {
    if (table_.find_or_insert(first, second, 0) < 0) {
      excluded_[first].push_back(second);
      excluded_[second].push_back(first);
    }
  }

  void join(int32_t root, int32_t below) {
    if (excluded_[root].size() < excluded_[below].size()) {
      std::swap(root, below);
    }
    forest_.join(root, below);
    for (const int32_t node : excluded_[below]) {
      exclude(root, forest_.find(node));
    }
    std::vector<int32_t>().swap(excluded_[below]);
  }

  std::vector<Edge> edges_;
  std::vector<std::vector<int32_t>> excluded_;  // nodes of the parts that a root cannot join
  Forest forest_;
  PairTable table_;  // pairs of roots that cannot join
};

}  // namespace

at::Tensor contract_greedily_cpu(const at::Tensor& edges, const at::Tensor& weights,
                                 int64_t num_nodes) {
  return Contraction(read_edges(edges, weights, num_nodes), num_nodes).run();
}

at::Tensor partition_by_mutexes_cpu(const at::Tensor& edges, const at::Tensor& weights,
                                    int64_t num_nodes) {
  return MutexWatershed(read_edges(edges, weights, num_nodes), num_nodes).run();
}

TORCH_LIBRARY_IMPL(instancezoo, CPU, m) {
  m.impl("contract_greedily", &contract_greedily_cpu);
  m.impl("partition_by_mutexes", &partition_by_mutexes_cpu);
}

}  // namespace instancezoo
