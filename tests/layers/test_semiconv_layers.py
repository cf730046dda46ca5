"""The semi-convolutional operator, its losses and kernels against plain loops."""

import math

import pytest
import torch

from instancezoo.layers.clustering import cluster_k_means
from instancezoo.layers.double import find_double_device
from instancezoo.layers.embeddings import measure_norms, repulsion_loss
from instancezoo.layers.owners import average_by_owner
from instancezoo.layers.semiconv import (
    add_coordinates,
    colouring_loss,
    find_radius,
    find_seeds,
    kernel_loss,
    measure_exponents,
    refine_mask_logits,
    scale_gradient,
)

DEVICE = find_double_device(torch.device("cpu"))


def _sample(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE)


def test_coordinates_of_all_levels_meet_at_the_same_place():
    zeros = torch.zeros(1, 3, 8, 6)
    fine = add_coordinates(zeros, stride=4, unit=64)
    coarse = add_coordinates(zeros[:, :, :4, :3], stride=8, unit=64)
    assert fine[0, :, 2, 5].tolist() == pytest.approx([5.5 * 4 / 64, 2.5 * 4 / 64, 0])
    # the centre of a coarse cell is the mean of its four fine ones
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(fine, 2), coarse)
    index = add_coordinates(zeros, stride=4, unit=64, mode="index")
    assert index[0, :, 2, 5].tolist() == [5, 2, 0]
    assert torch.equal(add_coordinates(zeros, mode="none"), zeros)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coordinates_are_exact_in_half_precision(dtype):
    features = torch.zeros(1, 2, 1, 2000, dtype=dtype)
    found = add_coordinates(features, mode="index")
    assert found.dtype == torch.float32
    assert torch.equal(found[0, 0, 0], torch.arange(2000.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(add_coordinates(features, mode="index"), found)


def test_colouring_loss_equals_a_loop():
    vectors, owners = _sample(40, 5), torch.arange(40) % 7
    owners[owners == 3] = 0  # an instance without pixels
    expected = []
    for owner in (0, 1, 2, 4, 5, 6):
        mine = vectors[owners == owner]
        expected.append(sum((v - mine.mean(dim=0)).norm() for v in mine) / len(mine))
    total = colouring_loss(vectors, owners, 7, reduction="sum")
    torch.testing.assert_close(total, sum(expected))
    torch.testing.assert_close(colouring_loss(vectors, owners, 7), sum(expected) / 6)
    empty = colouring_loss(vectors[:0], owners[:0], 0)
    assert empty == 0


def test_gradients_are_finite_at_distance_0():
    vectors = _sample(1, 4).requires_grad_()
    colouring_loss(vectors, torch.zeros(1, dtype=torch.long), 1).backward()
    assert torch.equal(vectors.grad, torch.zeros_like(vectors))
    difference, log_sigma = (
        torch.zeros(3, 4, requires_grad=True),
        torch.zeros((), requires_grad=True),
    )
    for kernel in ("laplacian", "gaussian"):
        exponents = measure_exponents(difference, log_sigma, dim=1, kernel=kernel)
        loss = kernel_loss(exponents, torch.tensor([True, False, True])).sum()
        loss.backward()
        assert difference.grad.isfinite().all() and log_sigma.grad.isfinite()
        assert loss.isfinite()


def test_gradients_equal_differences():
    vectors, owners = _sample(9, 3).requires_grad_(), torch.arange(9) % 3
    assert torch.autograd.gradcheck(lambda v: colouring_loss(v, owners, 3), vectors)
    means = _sample(4, 3).requires_grad_()
    images = torch.tensor([0, 0, 0, 1])
    assert torch.autograd.gradcheck(lambda m: repulsion_loss(m, images, margin=2.0), means)
    logits, psi = _sample(2, 3, 3).requires_grad_(), _sample(2, 4, 3, 3).requires_grad_()
    log_sigma = torch.tensor(0.3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    for kernel in ("laplacian", "gaussian"):
        assert torch.autograd.gradcheck(
            lambda s, p, g, kernel=kernel: refine_mask_logits(s, p, g, seed="soft", kernel=kernel),
            (logits, psi, log_sigma),
        )


def test_kernels_and_their_radius():
    for kernel, formula in (
        ("laplacian", lambda d: math.exp(-d / 0.7)),
        ("gaussian", lambda d: math.exp(-(d**2) / (2 * 0.7**2))),
    ):
        log_sigma = torch.tensor(0.7).log()
        exponent = measure_exponents(torch.tensor([3.0, 4.0]), log_sigma, dim=0, kernel=kernel)
        assert math.exp(-exponent) == pytest.approx(formula(5.0), rel=1e-5)
        assert formula(find_radius(0.7, 0.4, kernel)) == pytest.approx(0.4)


def test_kernel_loss_is_the_cross_entropy_of_the_similarity():
    exponents = torch.tensor([0.1, 1.0, 5.0, 80.0], dtype=torch.float64)
    for target in (0.0, 1.0):
        expected = torch.nn.functional.binary_cross_entropy(
            (-exponents).exp(), torch.full_like(exponents, target), reduction="none"
        )
        found = kernel_loss(exponents, torch.full_like(exponents, target))
        torch.testing.assert_close(found[:3], expected[:3])  # torch limits its logarithm at -100
        assert found[3] == pytest.approx(80 * target)


def test_a_kernel_only_lowers_logits_and_the_hard_seed_keeps_its_own():
    logits, psi = _sample(5, 7, 7), _sample(5, 4, 7, 7)
    log_sigma = torch.zeros(())
    for seed in ("soft", "hard"):
        refined, exponents = refine_mask_logits(
            logits, psi, log_sigma, seed=seed, kernel="laplacian"
        )
        assert (exponents >= 0).all() and torch.equal(refined, logits - exponents)
    best = logits.flatten(1).argmax(dim=1)
    assert (exponents.flatten(1).gather(1, best[:, None]) == 0).all()
    equal = torch.zeros(1, 2, 2)
    cells = torch.arange(8.0).view(1, 2, 2, 2)
    assert find_seeds(equal, cells, seed="hard").tolist() == [[0, 4]]  # the first of equal ones
    assert find_seeds(equal, cells, seed="soft").tolist() == [[1.5, 5.5]]
    none = refine_mask_logits(logits[:0], psi[:0], log_sigma, seed="hard", kernel="gaussian")
    assert none[0].shape == (0, 7, 7)


def test_repulsion_equals_a_loop_over_pairs():
    means, images = _sample(7, 3), torch.tensor([0, 0, 0, 1, 1, 2, 0])
    expected = torch.zeros((), dtype=torch.float64)
    for image in range(3):
        mine = means[images == image]
        pairs = [(a, b) for a in range(len(mine)) for b in range(len(mine)) if a != b]
        for a, b in pairs:
            hinge = max(0.0, 2 * 1.5 - float((mine[a] - mine[b]).norm()))
            expected += hinge**2 / len(pairs)
    torch.testing.assert_close(repulsion_loss(means, images, margin=1.5).cpu(), expected)
    assert repulsion_loss(means[:0], images[:0], margin=1.5) == 0


def test_scaled_gradient():
    values = torch.tensor([1.0, -3.0], requires_grad=True)
    scaled = scale_gradient(values, 0.1)
    assert torch.equal(scaled, values)
    (scaled * torch.tensor([2.0, 5.0])).sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([0.2, 0.5]))


def test_norms_and_averages():
    norms = measure_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 1)
    assert norms.tolist() == [5, 0]
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found = average_by_owner(values, torch.tensor([2, 0, 2]), 3)
    assert found.tolist() == [[3, 4], [0, 0], [3, 4]]


@pytest.mark.parametrize("count,value", [(2**18, 1000.3), (2**16, 16.3), (3, 50.3)])
def test_the_mean_of_many_pixels_is_as_exact_as_of_few(count, value):
    """A large object at the far end of a large image, whose pixels all point at one place."""
    values = torch.full((count, 2), value)
    owners = torch.zeros(count, dtype=torch.long)
    mean = average_by_owner(values, owners, 1)
    assert (mean - value).abs().max() <= 1e-5 * value
    assert colouring_loss(values, owners, 1) <= 2e-5 * value
    means = cluster_k_means(values.T, values[:1] + 1).centres
    assert torch.equal(means, mean)
