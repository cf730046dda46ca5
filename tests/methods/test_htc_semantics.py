"""Targets of HTC's semantic branch, and its loss."""

import logging

import pytest
import torch
from detectron2.utils.events import EventStorage

from instancezoo import model_zoo
from instancezoo.errors import ConfigError, ZooError
from instancezoo.htc.head import FusedSemanticHead
from instancezoo.htc.semantics import SemanticTargets, paint_labels
from instancezoo.testing import build_seeded_model, get_tiny_config, make_input

IGNORE = 255
BOXES = [[16, 8, 48, 40], [24, 16, 40, 32], [0, 48, 16, 64]]  # the second lies in the first


def _make_targets(**changes):
    values = {"source": "auto", "num_classes": 5, "num_things": 4, "ignore_value": IGNORE}
    return SemanticTargets(**(values | {"stride": 8} | changes))


def _make_record(labels=None, **changes):
    record = make_input(64, 80, BOXES) | changes
    return record if labels is None else record | {"sem_seg": labels}


def test_objects_are_painted_with_smaller_ones_on_top(caplog):
    targets = _make_targets()
    with caplog.at_level(logging.INFO):
        (labels,) = targets.make([_make_record()], (64, 96))
        targets.make([_make_record()], (64, 96))
    expected = torch.full((8, 12), 4)
    expected[:, 10:] = IGNORE  # padding
    expected[1:5, 2:6] = 0
    expected[2:4, 3:5] = 1
    expected[6:8, 0:2] = 2
    assert torch.equal(labels, expected)
    told = [record.getMessage() for record in caplog.records if "semantic" in record.getMessage()]
    assert len(told) == 1 and "class 4" in told[0]


def test_an_image_without_objects_is_background():
    labels = paint_labels(torch.zeros(0, 3, 4, dtype=torch.bool), torch.zeros(0).long(), 7)
    assert labels.tolist() == [[7] * 4] * 3


def test_maps_of_the_data_set_are_read_at_the_corners_of_cells():
    labels = torch.randint(0, 5, (61, 75), generator=torch.Generator().manual_seed(0))
    labels[8, 16] = IGNORE
    (read,) = _make_targets().make([_make_record(labels)], (64, 96))
    assert read.shape == (8, 12) and read[1, 2] == IGNORE
    for i in range(8):
        for j in range(12):
            is_inside = 8 * i < 61 and 8 * j < 75
            assert read[i, j] == (labels[8 * i, 8 * j] if is_inside else IGNORE)


def test_a_label_that_is_no_class_is_told_with_its_file():
    labels = torch.zeros(64, 80, dtype=torch.long)
    labels[63, 3] = 5  # beside the cells' corners, too
    with pytest.raises(ZooError, match=r"'x\.png' has label 5.*SEMANTIC_NUM_CLASSES 5.*0 to 4"):
        _make_targets().make([_make_record(labels, file_name="x.png")], (64, 96))
    labels[63, 3] = -1
    with pytest.raises(ZooError, match="label -1"):
        _make_targets(source="stuff").make([_make_record(labels)], (64, 96))
    labels[63, 3] = IGNORE
    _make_targets().make([_make_record(labels)], (64, 96))


def test_a_sample_that_lacks_what_others_have_is_told():
    labels = torch.zeros(64, 80, dtype=torch.long)
    missing = _make_record(file_name="bare.png")
    with pytest.raises(ZooError, match=r"'bare\.png' has no semantic map.*INPUT\.SEMANTIC_MAPS"):
        _make_targets().make([_make_record(labels), missing], (64, 96))
    remedies = r"SEMANTIC_TARGETS things.*SEMANTIC_ON False"
    with pytest.raises(ZooError, match=rf"'bare\.png' has no semantic map.*{remedies}"):
        _make_targets(source="stuff").make([missing], (64, 96))
    targets = _make_targets()
    targets.make([missing], (64, 96))  # the first batch decides
    with pytest.raises(ZooError, match="images before it have none"):
        targets.make([_make_record(labels)], (64, 96))
    # By an explicit choice, maps of the data set are not used.
    painted = _make_targets(source="things").make([_make_record(labels)], (64, 96))
    assert painted.max() == IGNORE and (painted == 4).any()


def test_published_configs_never_paint_maps_silently():
    names = [name for name in model_zoo.list_configs() if name.startswith("htc/")]
    configs = {name: model_zoo.get_config(name).MODEL.HTC for name in names}
    sources = {n: own.SEMANTIC_TARGETS for n, own in configs.items() if own.SEMANTIC_ON}
    own_data = {"htc/htc_tiny", "htc/htc_nuclei", "htc/htc_pointrend_tiny"}
    assert sources == {name: "auto" if name in own_data else "stuff" for name in sources}
    assert own_data < set(sources)


def test_too_few_classes_for_painted_maps():
    with pytest.raises(ZooError, match=r"SEMANTIC_NUM_CLASSES is 4.*need 5"):
        _make_targets(num_classes=4).make([_make_record()], (64, 96))
    overrides = ["MODEL.HTC.SEMANTIC_TARGETS", "things", "MODEL.HTC.SEMANTIC_NUM_CLASSES", 4]
    with pytest.raises(ConfigError, match="SEMANTIC_NUM_CLASSES is 4"):
        build_seeded_model(get_tiny_config("htc/htc_tiny", overrides))


def test_cells_that_are_ignored_count_in_the_mean():
    heads = build_seeded_model(get_tiny_config("htc/htc_tiny")).roi_heads
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.full((2, 3, 4), IGNORE)
    assert heads.semantic_loss(logits, labels) == 0
    labels[0, 1, 2], labels[1, 0, 0] = 3, 1
    probs = logits.softmax(dim=1)
    expected = -(probs[0, 3, 1, 2].log() + probs[1, 1, 0, 0].log()) / 24
    torch.testing.assert_close(heads.semantic_loss(logits, labels), 0.2 * expected)


def test_the_branch_learns_and_reaches_boxes_and_masks():
    model = build_seeded_model(get_tiny_config("htc/htc_tiny"))
    with EventStorage():
        losses = model([make_input(128, 128, BOXES)])
    for name in ("loss_semantic", "loss_cls_stage2", "loss_mask_stage0"):
        model.zero_grad()
        losses[name].backward(retain_graph=True)
        head = model.roi_heads.semantic_head
        assert head.convs[0].weight.grad.abs().sum() > 0, name
        reached = head.conv_logits.weight.grad is not None
        assert reached == (name == "loss_semantic")


@pytest.mark.parametrize("fusion", [("bbox",), ("mask",), ("bbox", "mask")])
def test_fusion_is_by_part(fusion):
    overrides = ["MODEL.HTC.SEMANTIC_FUSION", fusion]
    heads = build_seeded_model(get_tiny_config("htc/htc_tiny", overrides)).eval().roi_heads
    features = {f"p{k}": torch.randn(1, 64, 128 >> k, 128 >> k) for k in range(2, 7)}
    boxes = [make_input(128, 128, BOXES)["instances"].gt_boxes]
    with torch.no_grad():
        maps, _ = heads.make_maps(features)
        pooled = heads.pool_boxes(maps, boxes), heads.pool_masks(maps, boxes)
        plain = heads.box_pooler(maps.pyramid, boxes), heads.mask_pooler(maps.pyramid, boxes)
        semantic = heads.semantic_pooler([maps.semantic], boxes)  # (3, 64, 14, 14)
    added = [both - alone for both, alone in zip(pooled, plain, strict=True)]
    halved = semantic.unflatten(3, (7, 2)).unflatten(2, (7, 2)).mean(dim=(3, 5))
    for name, own, expected in zip(("bbox", "mask"), added, (halved, semantic), strict=True):
        wanted = expected if name in fusion else torch.zeros_like(expected)
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


def test_the_finest_map_is_resized_before_its_convolution():
    torch.manual_seed(0)
    head = FusedSemanticHead(
        in_features="abc", in_channels=4, fusion_level=1, conv_dim=6, num_convs=0, num_classes=2
    )
    features = [torch.randn(1, 4, 16 >> k, 16 >> k) for k in range(3)]
    total = torch.zeros(1, 6, 8, 8)
    for feature, conv in zip(features, head.lateral_convs, strict=True):
        corners = torch.nn.functional.interpolate(
            feature, (8, 8), mode="bilinear", align_corners=True
        )
        total = total + torch.einsum("oc,nchw->nohw", conv.weight[:, :, 0, 0], corners).relu()
    logits, embedding = head(dict(zip("abc", features, strict=True)))
    weight = head.conv_logits.weight[:, :, 0, 0]
    torch.testing.assert_close(logits, torch.einsum("oc,nchw->nohw", weight, total))
    assert embedding.shape == (1, 4, 8, 8) and (embedding >= 0).all()


@pytest.mark.parametrize("level", [0, 2])
def test_another_fusion_level_has_its_own_stride(level):
    overrides = ["MODEL.HTC.SEMANTIC_FUSION_LEVEL", level]
    model = build_seeded_model(get_tiny_config("htc/htc_tiny", overrides))
    stride = 4 << level
    batch = [make_input(128, 128, BOXES)]
    labels = model.preprocess_image(batch).semantic_labels
    assert labels.shape == (1, 128 // stride, 128 // stride)
    pooler = model.roi_heads.semantic_pooler
    assert [own.spatial_scale for own in pooler.level_poolers] == [1 / stride]
    with EventStorage():
        assert model(batch)["loss_semantic"] > 0
