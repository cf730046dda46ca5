"""What the ROI heads of the two-stage model get to see."""

import gc
import weakref

import pytest
import torch
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage

from instancezoo.testing import build_seeded_model, get_tiny_config, keep_everything, make_input

SIZES = [(96, 128), (64, 100)]
IGNORED = 255


class LabelReadingROIHeads(StandardROIHeads):
    """Learns from labels of pixels that only the batch holds, as a semantic branch would."""

    def forward(self, images, features, proposals, targets=None):
        self.seen.append([record["file_name"] for record in images.records])
        instances, losses = super().forward(images, features, proposals, targets)
        if self.training:
            labels = [record["sem_seg"] for record in images.records]
            padded = ImageList.from_tensors(labels, pad_value=IGNORED).tensor
            self.labels = weakref.ref(labels[0])
            assert padded.shape == (2, *images.tensor.shape[2:])
            losses["loss_labels"] = (padded == IGNORED).float().mean()
        return instances, losses


@pytest.fixture
def model():
    cfg = keep_everything(get_tiny_config("mask_rcnn/mask_rcnn_tiny"))
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    model = build_seeded_model(cfg)
    model.roi_heads.__class__ = LabelReadingROIHeads
    model.roi_heads.seen = []
    return model


def _make_batch():
    batch = [make_input(*size, [[8, 8, 40, 40]], seed=i) for i, size in enumerate(SIZES)]
    for record in batch:
        record["sem_seg"] = torch.zeros(record["image"].shape[1:], dtype=torch.long)
    return batch


def test_roi_heads_train_on_labels_of_pixels(model):
    batch = _make_batch()
    with EventStorage():
        losses = model(batch)
    area = torch.tensor(SIZES).prod(dim=1).sum() / (2 * 96 * 128)
    torch.testing.assert_close(losses["loss_labels"], 1 - area)
    assert model.roi_heads.seen == [["image_0.png", "image_1.png"]]
    del batch, losses
    gc.collect()
    assert model.roi_heads.labels() is None  # nothing of the batch stays behind


@torch.no_grad()
def test_roi_heads_see_the_records_in_inference_too(model):
    model.eval()
    batch = [{k: v for k, v in x.items() if k in ("image", "file_name")} for x in _make_batch()]
    found = model(batch)
    raw = model.inference(batch, do_postprocess=False)  # as test-time augmentation calls it
    assert model.roi_heads.seen == [["image_0.png", "image_1.png"]] * 2
    assert [len(x["instances"]) for x in found] == [len(x) for x in raw] == [5, 5]
