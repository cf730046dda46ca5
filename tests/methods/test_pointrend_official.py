"""PointRend beside the official project: its YAML files, its registered names, its checkpoints."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.modeling import build_model
from published_names import (
    add_counters,
    describe_model,
    list_mmdetection_rows,
    list_shapes,
    rename,
)

import instancezoo
from instancezoo import get_cfg, model_zoo
from instancezoo.checkpoint import ZooCheckpointer, convert_state_dict
from instancezoo.pointrend import METHOD, POINT_HEAD_REGISTRY, add_pointrend_config
from instancezoo.pointrend.config import MASK_HEAD

# What the official base file says, over Detectron2's own Base-RCNN-FPN.yaml.
COMMON = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE:
    NAME: "build_resnet_fpn_backbone"
  RESNETS:
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
  FPN:
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
  RPN:
    IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"]
  ANCHOR_GENERATOR:
    SIZES: [[32], [64], [128], [256], [512]]
  MASK_ON: true
  ROI_BOX_HEAD:
    NAME: "FastRCNNConvFCHead"
    NUM_FC: 2
    POOLER_RESOLUTION: 7
    TRAIN_ON_PRED_BOXES: True
  ROI_HEADS:
    NAME: "{roi_heads}"
    IN_FEATURES: ["p2", "p3", "p4", "p5"]
  ROI_MASK_HEAD:
    {pooler}
    NAME: "{mask_head}"
    FC_DIM: 1024
    NUM_FC: 2
    OUTPUT_SIDE_RESOLUTION: 7
    IN_FEATURES: ["p2"]
    POINT_HEAD_ON: True
  POINT_HEAD:
    NAME: "StandardPointHead"
    FC_DIM: 256
    NUM_FC: 3
    IN_FEATURES: ["p2"]
INPUT:
  MASK_FORMAT: "bitmask"
"""
OFFICIAL = {
    "today": {
        "roi_heads": "StandardROIHeads",
        "mask_head": "PointRendMaskHead",
        "pooler": 'POOLER_TYPE: ""',
    },
    "2020": {
        "roi_heads": "PointRendROIHeads",
        "mask_head": "CoarseMaskHead",
        "pooler": "POOLER_RESOLUTION: 14",
    },
    "between": {
        "roi_heads": "PointRendROIHeads",
        "mask_head": "PointRendMaskHead",
        "pooler": "POOLER_RESOLUTION: 14",
    },
}
BOTH_ORDERS = (
    ("instancezoo.config", "detectron2.projects.point_rend"),
    ("detectron2.projects.point_rend", "instancezoo.config"),
)
_BUILD_IN_ORDER = """
import importlib, sys
first, second, config_file = sys.argv[1:]
importlib.import_module(first), importlib.import_module(second)
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY
from instancezoo import get_cfg
theirs = ROI_MASK_HEAD_REGISTRY.get("PointRendMaskHead")
assert theirs.__module__.startswith("detectron2.projects"), theirs
cfg = get_cfg()
cfg.merge_from_file(config_file)
cfg.MODEL.DEVICE = "meta"
with torch.device("meta"):
    head = build_model(cfg).roi_heads.mask_head
assert type(head).__module__ == "instancezoo.pointrend.mask_head", type(head)
assert type(head.point_head).__module__ == "instancezoo.pointrend.head", type(head.point_head)
"""


def _write_official(folder, which):
    path = folder / "pointrend_rcnn.yaml"
    path.write_text(COMMON.format(**OFFICIAL[which]))
    return str(path)


def _build_on_meta(cfg):
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "meta"
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize("which", OFFICIAL)
def test_official_yaml_loads_as_it_is(which, tmp_path):
    cfg = get_cfg()
    cfg.merge_from_file(_write_official(tmp_path, which))
    assert cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads"
    assert cfg.MODEL.ROI_MASK_HEAD.NAME == MASK_HEAD
    _, ours = describe_model("pointrend/pointrend_R_50_FPN_1x")
    theirs = _build_on_meta(cfg).state_dict()
    assert list_shapes(theirs) == list_shapes(ours)


def test_official_name_in_overrides_and_other_configs_and_our_names_stay():
    cfg, other = get_cfg(), get_cfg()
    other.MODEL.ROI_MASK_HEAD.NAME = "PointRendMaskHead"
    cfg.merge_from_other_cfg(other)
    assert cfg.MODEL.ROI_MASK_HEAD.NAME == MASK_HEAD
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead"])
    assert cfg.MODEL.ROI_MASK_HEAD.NAME == MASK_HEAD
    cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"])
    assert cfg.MODEL.ROI_MASK_HEAD.NAME == "MaskRCNNConvUpsampleHead"


@pytest.mark.parametrize("first,second", BOTH_ORDERS)
def test_both_packages_live_in_one_process(first, second, tmp_path):
    config_file = _write_official(tmp_path, "today")
    command = [sys.executable, "-W", "ignore", "-c", _BUILD_IN_ORDER, first, second, config_file]
    environment = {**os.environ, "PYTHONPATH": str(Path(instancezoo.__file__).parent.parent)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr


def test_keys_join_a_stock_config():
    cfg = get_detectron2_cfg()
    add_pointrend_config(cfg)
    cfg.merge_from_list(["MODEL.POINT_HEAD.FC_DIM", 64])
    assert cfg.MODEL.POINT_HEAD.FC_DIM == 64
    defaults = get_cfg().MODEL
    assert tuple(defaults.ROI_MASK_HEAD.IN_FEATURES) == ("p2",)
    assert defaults.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION == 7
    assert not defaults.ROI_MASK_HEAD.POINT_HEAD_ON
    assert dict(defaults.POINT_HEAD) == {
        "NAME": "StandardPointHead",
        "NUM_CLASSES": 80,
        "IN_FEATURES": ("p2",),
        "TRAIN_NUM_POINTS": 196,
        "OVERSAMPLE_RATIO": 3,
        "IMPORTANCE_SAMPLE_RATIO": 0.75,
        "SUBDIVISION_STEPS": 5,
        "SUBDIVISION_NUM_POINTS": 784,
        "FC_DIM": 256,
        "NUM_FC": 3,
        "CLS_AGNOSTIC_MASK": False,
        "COARSE_PRED_EACH_LAYER": True,
    }
    assert defaults.POINT_HEAD.NAME in POINT_HEAD_REGISTRY


# Ours -> what the files of 2020, those half-way, and MMDetection's call it.
_COARSE, _POINT = r"roi_heads\.mask_head\.coarse_head", r"roi_heads\.mask_head\.point_head"
_2020 = [
    (rf"{_COARSE}\.fc(\d)", r"roi_heads.mask_coarse_head.coarse_mask_fc\1"),
    (_COARSE, "roi_heads.mask_coarse_head"),
    (_POINT, "roi_heads.mask_point_head"),
]
_HALF_WAY = [(rf"({_COARSE})\.fc(\d)", r"\1.coarse_mask_fc\2")]
_MMDET = [
    *list_mmdetection_rows(finest=2),
    (r"proposal_generator\.rpn_head\.conv", "rpn_head.rpn_conv"),
    (r"proposal_generator\.rpn_head\.objectness_logits", "rpn_head.rpn_cls"),
    (r"proposal_generator\.rpn_head\.anchor_deltas", "rpn_head.rpn_reg"),
    (r"roi_heads\.box_head\.fc(\d)", lambda m: f"roi_head.bbox_head.shared_fcs.{int(m[1]) - 1}"),
    (r"roi_heads\.box_predictor\.cls_score", "roi_head.bbox_head.fc_cls"),
    (r"roi_heads\.box_predictor\.bbox_pred", "roi_head.bbox_head.fc_reg"),
    (rf"{_COARSE}\.reduce_spatial_dim_conv", "roi_head.mask_head.downsample_conv.conv"),
    (rf"{_COARSE}\.fc(\d)", lambda m: f"roi_head.mask_head.fcs.{int(m[1]) - 1}"),
    (rf"{_COARSE}\.prediction", "roi_head.mask_head.fc_logits"),
    (rf"{_POINT}\.fc(\d)", lambda m: f"roi_head.point_head.fcs.{int(m[1]) - 1}.conv"),
    (rf"{_POINT}\.predictor", "roi_head.point_head.fc_logits"),
]
PUBLISHED = {"2020": _2020, "half-way": _HALF_WAY, "today": [], "mmdet": _MMDET}
CONFIGS = {layout.config for layout in METHOD.layouts}
FILES = [(config, source) for config in sorted(CONFIGS) for source in ("2020", "half-way", "today")]
FILES += [("pointrend/pointrend_R_50_FPN_3x", "mmdet")]


def _publish(state, source):
    published = {rename(name, PUBLISHED[source]): tensor for name, tensor in state.items()}
    assert len(published) == len(state)
    if source == "mmdet":
        return add_counters(published)
    anchors = {"proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
    return {**published, **anchors, "pixel_mean": torch.zeros(3, 1, 1)}


@pytest.mark.parametrize("config,source", FILES)
def test_published_layout_fills_its_config(config, source):
    _, ours = describe_model(config)
    theirs = _publish(ours, source)
    converted = convert_state_dict(theirs)
    assert converted.layout.config == config and converted.layout.method == "PointRend"
    classes = converted.layout.find_classes(theirs).names
    assert len(classes) == (8 if config.endswith("cityscapes") else 80)
    assert list_shapes(converted.state) == list_shapes(ours)
    assert len(converted.used) + len(converted.unused) == len(theirs)


def test_every_two_stage_config_of_the_paper_has_a_layout():
    shipped = {name for name in model_zoo.list_configs() if name.startswith("pointrend/pointrend_")}
    assert {name for name in shipped if not name.endswith(("_tiny", "_nuclei", "_1x"))} == CONFIGS


def test_number_of_published_tensors():
    assert len(describe_model("pointrend/pointrend_R_50_FPN_3x")[1]) == 311


def test_another_number_of_classes_is_still_recognised():
    cfg = model_zoo.get_config("pointrend/pointrend_R_50_FPN_1x")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.POINT_HEAD.NUM_CLASSES = 3
    state = _publish(_build_on_meta(cfg).state_dict(), "2020")
    assert convert_state_dict(state).layout.config == "pointrend/pointrend_R_50_FPN_3x"


@pytest.mark.parametrize("source", ["2020", "today"])
def test_published_file_loads(source, tmp_path):
    cfg = model_zoo.get_config("pointrend/pointrend_tiny", ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 50, 256
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    torch.manual_seed(0)
    theirs, ours = build_model(cfg), build_model(cfg)
    state = {k: v.numpy() for k, v in _publish(theirs.state_dict(), source).items()}
    file = tmp_path / "model_final_736f5a.pkl"
    file.write_bytes(pickle.dumps({"model": state, "__author__": "x"}, protocol=2))
    ZooCheckpointer(ours).load(str(file))
    loaded = ours.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in theirs.state_dict().items())
