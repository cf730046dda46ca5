"""What holds for masks in any form."""

import pytest
import torch
from detectron2.structures import Boxes

from instancezoo.modeling.masks import select_rows

ROWS = torch.tensor([2, 0, 2])


@pytest.mark.parametrize("rows", [ROWS, ROWS[:0]])
def test_rows_of_a_field_in_any_form(rows):
    numbers = torch.arange(12.0).view(3, 4)
    expected = numbers[rows]
    assert torch.equal(select_rows(numbers, rows), expected)
    assert torch.equal(select_rows(Boxes(numbers), rows).tensor, expected)
    assert select_rows(numbers.tolist(), rows) == expected.tolist()
