"""Deep metric learning's functions against the definitions, one pair or pixel at a time."""

from math import exp, inf, log

import pytest
import torch

from instancezoo.layers.metric import (
    choose_seeds,
    discriminative_terms,
    embedding_loss,
    find_limit,
    find_seed_masks,
    measure_best_ious,
    measure_seed_similarity,
    measure_similarity,
)


def _draw(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def _similarity(first, second):
    return 2 / (1 + exp(float((first - second).square().sum())))


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.9, 1.0])
def test_the_limit_is_where_the_similarity_meets_the_threshold(threshold):
    limit = torch.tensor(find_limit(threshold), dtype=torch.float64)
    assert float(measure_similarity(limit)) == pytest.approx(threshold, abs=1e-12)


@pytest.mark.parametrize("pair_weight", ["sum", "product"])
def test_embedding_loss_equals_a_loop(pair_weight):
    embeddings, owners = _draw(12, 5, scale=0.4), torch.arange(12) // 3
    sizes = torch.tensor([4, 90, 1, 17])[owners]
    total = weights = 0.0
    for p in range(12):
        for q in range(12):
            pair = sizes[p] * sizes[q] if pair_weight == "product" else sizes[p] + sizes[q]
            sigma = _similarity(embeddings[p], embeddings[q])
            total -= log(sigma if owners[p] == owners[q] else 1 - sigma) / float(pair)
            weights += 1 / float(pair)
    found = embedding_loss(embeddings, owners, sizes, pair_weight=pair_weight)
    assert float(found) == pytest.approx(total / weights, abs=1e-12)


@pytest.mark.parametrize("scale", [0.3, 4.0])
def test_gradients_of_the_embedding_loss(scale):
    embeddings = _draw(8, 3, scale=scale).requires_grad_()
    owners = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])

    def compute(values):
        return embedding_loss(values, owners, owners + 1)

    assert torch.autograd.gradcheck(compute, embeddings)


@pytest.mark.parametrize("pair_weight", ["sum", "product"])
def test_pairs_in_pieces_have_the_same_loss_and_gradient(pair_weight):
    owners, found = torch.arange(11) // 3, []
    for budget in (1, 3 * 11 * 12 * 8, 2**26):  # one point, three points, all at once
        embeddings = _draw(11, 4).requires_grad_()
        loss = embedding_loss(
            embeddings, owners, owners + 2, pair_weight=pair_weight, budget=budget
        )
        loss.backward()
        found.append((loss.detach(), embeddings.grad))
    for loss, gradient in found[:2]:
        torch.testing.assert_close(loss, found[2][0])
        torch.testing.assert_close(gradient, found[2][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1.0, 1e3])
def test_embedding_loss_is_finite(dtype, scale):
    """Equal embeddings of different objects, and those so far away that exp overflows."""
    embeddings = (_draw(10, 4, scale=scale)).to(dtype)
    embeddings[3:6] = embeddings[0]
    embeddings.requires_grad_()
    owners = torch.arange(10) // 5
    loss = embedding_loss(embeddings, owners, owners + 1)
    loss.backward()
    assert loss.isfinite() and embeddings.grad.isfinite().all()


def test_one_object_alone_has_only_attraction():
    embeddings = _draw(5, 3)
    loss = embedding_loss(embeddings, torch.zeros(5, dtype=torch.long), torch.full((5,), 7))
    assert loss > 0
    same = embeddings[:1].expand(5, -1)
    assert embedding_loss(same, torch.zeros(5, dtype=torch.long), torch.full((5,), 7)) == 0


def test_embedding_loss_without_points():
    empty = torch.zeros(0, 4, requires_grad=True)
    owners = torch.zeros(0, dtype=torch.long)
    loss = embedding_loss(empty, owners, owners)
    loss.backward()
    assert loss == 0 and empty.grad is not None


def test_discriminative_terms_equal_a_loop():
    embeddings = _draw(40, 3, scale=2.0)
    owners = torch.tensor([5, 2, 9, 7]).repeat(10)  # numbers need not be consecutive
    images = torch.tensor([4, 4, 4, 1]).repeat(10)
    pulls, pushes, sizes = [], [], []
    for image in (1, 4):
        objects = owners[images == image].unique().tolist()
        means = {k: embeddings[owners == k].mean(dim=0) for k in objects}
        each = []
        for k in objects:
            hinges = [max(0.0, float((means[k] - x).norm()) - 0.5) for x in embeddings[owners == k]]
            each.append(sum(h**2 for h in hinges) / len(hinges))
        pulls.append(sum(each) / len(objects))
        pairs = [(a, b) for a in objects for b in objects if a != b]
        hinges = [max(0.0, 2 * 1.5 - float((means[a] - means[b]).norm())) for a, b in pairs]
        pushes.append(sum(h**2 for h in hinges) / max(1, len(pairs)))
        sizes.append(sum(float(means[k].norm()) for k in objects) / len(objects))
    expected = [sum(values) / 2 for values in (pulls, pushes, sizes)]
    found = discriminative_terms(embeddings, owners, images, pull_margin=0.5, push_margin=1.5)
    assert [float(term) for term in found] == pytest.approx(expected, abs=1e-12)
    assert min(expected) > 0


def test_gradients_of_the_discriminative_terms():
    owners, images = torch.tensor([0, 0, 0, 1, 1, 2, 3]), torch.tensor([0, 0, 0, 0, 0, 0, 1])

    def compute(values):
        terms = discriminative_terms(values, owners, images, pull_margin=0.3, push_margin=1.5)
        return torch.stack(terms)

    assert torch.autograd.gradcheck(compute, _draw(7, 3).requires_grad_())


def test_discriminative_terms_without_pixels():
    empty = torch.zeros(0, 3, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    terms = discriminative_terms(empty, none, none, pull_margin=0.5, push_margin=1.5)
    assert not torch.stack(terms).any()


@pytest.mark.parametrize("budget", [1, 2**20])
def test_best_ious_equal_a_loop(budget):
    embeddings, taus = _draw(3, 60, scale=0.7), (0.25, 0.6)
    labels = torch.arange(60) % 5 - 1  # -1 counts nowhere
    labels[labels == 2] = 0  # an object without a pixel
    points = torch.tensor([0, 17, 3, 3, 59])
    ious, objects = measure_best_ious(
        embeddings, points, labels, [find_limit(tau) for tau in taus], budget=budget
    )
    for row, tau in enumerate(taus):
        for column, point in enumerate(points.tolist()):
            mask = {
                q
                for q in range(60)
                if labels[q] >= 0 and _similarity(embeddings[:, point], embeddings[:, q]) >= tau
            }
            expected = []
            for number in (1, 2, 3):
                members = {q for q in range(60) if labels[q] == number}
                expected.append(len(mask & members) / max(1, len(mask | members)))
            assert float(ious[row, column]) == pytest.approx(max(expected), abs=1e-12)
            assert objects[row, column] == expected.index(max(expected))


@pytest.mark.parametrize("num_points", [0, 3])
def test_best_ious_without_objects(num_points):
    ious, objects = measure_best_ious(
        torch.ones(2, 6), torch.arange(num_points), torch.zeros(6, dtype=torch.long), [0.5, 1.0]
    )
    assert ious.shape == objects.shape == (2, num_points)
    assert not ious.any() and not objects.any()


def _choose_by_definition(embeddings, seediness, alpha, max_seeds, min_objective):
    seeds, values = [], []
    for _ in range(max_seeds):
        best, where = -inf, None
        for p, score in enumerate(seediness.tolist()):
            if p in seeds or score == 0:
                continue
            value = log(score)
            if seeds and alpha:
                near = max(_similarity(embeddings[:, p], embeddings[:, q]) for q in seeds)
                value += alpha * log(1 - near) if near < 1 else -inf
            if value > best:
                best, where = value, p
        if where is None or (min_objective > 0 and best < log(min_objective)):
            break
        seeds.append(where)
        values.append(best)
    return seeds, values


@pytest.mark.parametrize("alpha", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("min_objective", [0.0, 0.3])
@pytest.mark.parametrize("max_seeds", [4, 200])
def test_seeds_equal_a_loop(alpha, min_objective, max_seeds):
    embeddings = _draw(4, 90, seed=3, scale=0.5)
    embeddings[:, 30:45] = embeddings[:, 20, None]  # diversity 0
    generator = torch.Generator().manual_seed(1)
    seediness = torch.rand(90, generator=generator, dtype=torch.float64)
    seediness[50:60] = seediness[50]  # equal ones
    seediness[70:] = 0
    found = choose_seeds(
        embeddings, seediness, alpha=alpha, max_seeds=max_seeds, min_objective=min_objective
    )
    seeds, values = _choose_by_definition(embeddings, seediness, alpha, max_seeds, min_objective)
    assert found.pixels.tolist() == seeds
    assert found.objectives.tolist() == pytest.approx(values, abs=1e-9)


@pytest.mark.parametrize("count", [0, 5])
def test_no_seed_where_nothing_is_confident(count):
    found = choose_seeds(
        torch.zeros(3, count), torch.zeros(count), alpha=0.3, max_seeds=9, min_objective=0.0
    )
    assert found.pixels.shape == found.objectives.shape == (0,)
    assert found.pixels.dtype == torch.long


@pytest.mark.parametrize("budget", [1, 2**20])
def test_masks_of_seeds_equal_a_loop(budget):
    embeddings = _draw(4, 50, scale=0.6) + 100  # rounding grows with the distance from 0
    seeds, taus = torch.tensor([4, 9, 9, 30]), [0.9, 0.25, 0.75, 0.5]
    limits = torch.tensor([find_limit(tau) for tau in taus], dtype=torch.float64)
    masks = find_seed_masks(embeddings, seeds, limits, budget=budget)
    similarity = measure_seed_similarity(embeddings, seeds, budget=budget)
    for row, tau in enumerate(taus):
        for q in range(50):
            expected = _similarity(embeddings[:, seeds[row]], embeddings[:, q])
            assert float(similarity[row, q]) == pytest.approx(expected, abs=1e-10)
            assert bool(masks[row, q]) == (expected >= tau)


def test_no_masks():
    none = torch.zeros(0, dtype=torch.long)
    assert find_seed_masks(torch.ones(3, 8), none, torch.zeros(0)).shape == (0, 8)
    assert measure_seed_similarity(torch.ones(3, 8), none).shape == (0, 8)
