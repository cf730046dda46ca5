import pytest
import torch
from torch import Tensor

from instancezoo.layers.boundary_distance import _measure_by_steps, measure_boundary_distance


def measure_slowly(labels: Tensor) -> Tensor:
    """(H, W): every pixel of an object against all pixels of another label."""
    distances = torch.zeros(labels.shape)
    for y, x in labels.nonzero().tolist():
        others = (labels != labels[y, x]).nonzero()
        squared = (others - torch.tensor([y, x])).square().sum(dim=1)
        distances[y, x] = squared.min().float().sqrt() if len(others) else torch.inf
    return distances


def make_labels(seed: int, height: int, width: int) -> Tensor:
    """Touching rectangles, some in parts, some cut by the border."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(height, width, dtype=torch.long)
    for label in torch.randint(0, 6, (9,), generator=generator).tolist():
        y = int(torch.randint(0, height, (1,), generator=generator))
        x = int(torch.randint(0, width, (1,), generator=generator))
        labels[y : y + height // 2, x : x + width // 3] = label
    return labels


@pytest.mark.parametrize("measure", [measure_boundary_distance, _measure_by_steps])
def test_distances_equal_the_slow_reference(measure) -> None:
    for seed, size in enumerate([(1, 1), (1, 17), (13, 1), (23, 31), (31, 23), (40, 40)]):
        labels = torch.stack([make_labels(seed, *size), make_labels(seed + 100, *size)])
        expected = torch.stack([measure_slowly(image) for image in labels])
        found = measure(labels)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("measure", [measure_boundary_distance, _measure_by_steps])
def test_the_border_of_the_map_is_no_boundary(measure) -> None:
    labels = torch.ones(1, 5, 9, dtype=torch.long)
    assert measure(labels).isinf().all()
    labels[0, :, 0] = 2
    assert measure(labels)[0, 2].tolist() == [1, 1, 2, 3, 4, 5, 6, 7, 8]


def test_whole_distances_are_exact() -> None:
    labels = torch.zeros(1, 201, 201, dtype=torch.long)
    labels[0, 1:200, 1:200] = 7
    found = measure_boundary_distance(labels)
    assert torch.equal(found, found.round()) and found.max() == 100


def test_empty_maps() -> None:
    assert measure_boundary_distance(torch.zeros(0, 4, 5, dtype=torch.long)).shape == (0, 4, 5)
    assert not measure_boundary_distance(torch.zeros(2, 4, 5, dtype=torch.long)).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_both_devices_agree() -> None:
    labels = torch.stack([make_labels(seed, 64, 48) for seed in range(3)])
    found = measure_boundary_distance(labels.cuda()).cpu()
    assert torch.equal(found, measure_boundary_distance(labels))
