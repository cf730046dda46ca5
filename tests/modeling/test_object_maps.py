import torch

from instancezoo.modeling.object_maps import IGNORED, semantic_loss


def test_class_loss_is_the_mean_over_the_cells_that_count():
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([[[0, IGNORED], [2, 1]], [[IGNORED] * 2] * 2])
    chosen = logits.permute(0, 2, 3, 1).log_softmax(dim=-1)[0]
    expected = -(chosen[0, 0, 0] + chosen[1, 0, 2] + chosen[1, 1, 1]) / 3
    torch.testing.assert_close(semantic_loss(logits, classes), expected)
    logits.requires_grad_()
    loss = semantic_loss(logits.to(torch.bfloat16), torch.full_like(classes, IGNORED))
    loss.backward()
    assert loss.dtype == torch.float32 and loss == 0 and not logits.grad.any()
