"""The config node, and every shipped config."""

import pytest
import torch
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from instancezoo import get_cfg, model_zoo
from instancezoo.config import follow_dataset, load_cfg
from instancezoo.config_values import check_best_metric
from instancezoo.doctor import Severity
from instancezoo.doctor.diagnose import diagnose
from instancezoo.errors import ConfigError


@pytest.mark.parametrize("name", model_zoo.list_configs())
def test_shipped_config_builds_without_weights(name):
    # Shapes without values: the tiny configs are built with values in test_methods.py.
    overrides = ["MODEL.WEIGHTS", "", "MODEL.TIMM.WEIGHTS", "", "MODEL.DEVICE", "meta"]
    cfg = model_zoo.get_config(name, overrides)
    assert max(cfg.SOLVER.STEPS) <= cfg.SOLVER.MAX_ITER
    with torch.device("meta"):
        model = build_model(cfg)
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", model_zoo.list_configs())
def test_models_that_know_crowds_get_them(name):
    """Crowds that the mapper leaves out would be background."""
    cfg = model_zoo.get_config(name)
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    has_crowds = any(train.startswith(("coco", "cityscapes")) for train in cfg.DATASETS.TRAIN)
    assert cfg.INPUT.CROWDS or not (has_crowds and getattr(architecture, "keep_crowds", False))


@pytest.mark.parametrize("name", model_zoo.list_configs())
def test_shipped_config_is_short(name):
    with open(model_zoo.get_config_file(name)) as file:
        assert len(file.readlines()) <= 25


def _flatten(node, prefix=""):
    values = {}
    for key, value in node.items():
        nested = isinstance(value, dict)
        values |= _flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return values


def test_methods_leave_detectron2s_defaults_as_they_are():
    ours, theirs = _flatten(get_cfg()), _flatten(get_detectron2_cfg())
    changed = {key for key, value in theirs.items() if key not in ours or ours[key] != value}
    # The device follows the machine, masks of training are pixels.
    assert changed - {"MODEL.DEVICE"} == {"INPUT.MASK_FORMAT"}


@pytest.mark.parametrize(
    "key,nearest",
    [
        ("MODEL.ROI_HEAD.NUM_CLASES", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("MASK_ON", "MODEL.MASK_ON"),
        ("SOLVER.BASE_RL", "SOLVER.BASE_LR"),
    ],
)
def test_misspelt_key_is_answered_with_the_nearest(key, nearest, tmp_path):
    with pytest.raises(ConfigError, match=f"'{nearest}'"):
        get_cfg().merge_from_list([key, 1])
    file = tmp_path / "bad.yaml"
    parts = key.split(".")
    file.write_text("".join(f"{'  ' * i}{p}:\n" for i, p in enumerate(parts))[:-1] + " 1\n")
    with pytest.raises(ConfigError, match=f"'{nearest}'") as error:
        get_cfg().merge_from_file(str(file))
    assert "bad.yaml" in str(error.value)


def test_wrong_type_names_the_key(tmp_path):
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_ITER"):
        get_cfg().merge_from_list(["SOLVER.MAX_ITER", "many"])
    file = tmp_path / "bad.yaml"
    file.write_text("SOLVER:\n  MAX_ITER: many\n")
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_ITER.*bad\.yaml"):
        get_cfg().merge_from_file(str(file))


@pytest.mark.parametrize(
    "key,value,named",
    [
        ("MODEL.META_ARCHITECTURE", "SOLOv3", "'SOLOv2'"),
        ("MODEL.DEVICE", "cuda:0", r"MODEL\.DEVICE"),
        ("MODEL.DEVICE", "mps", r"MODEL\.DEVICE.*'mps'"),
        ("MODEL.DEVICE", "gpu", r"MODEL\.DEVICE.*'gpu'"),
        ("MODEL.BACKBONE.NAME", "build_resnet_fpm_backbone", "'build_resnet_fpn_backbone'"),
        ("MODEL.ROI_HEADS.NAME", "StandardROIHead", "'StandardROIHeads'"),
        ("MODEL.RPN.HEAD_NAME", "RPN", r"MODEL\.RPN\.HEAD_NAME.*StandardRPNHead"),
        ("SOLVER.OPTIMIZER", "Adam", r"SOLVER\.OPTIMIZER.*SGD, AdamW"),
        ("SOLVER.LR_SCHEDULER_NAME", "Cosine", "WarmupCosineLR"),
        ("SOLVER.AMP.DTYPE", "fp16", r"SOLVER\.AMP\.DTYPE.*float16"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "max", "full_model"),
        ("DATALOADER.SAMPLER_TRAIN", "Repeat", "RepeatFactorTrainingSampler"),
        ("INPUT.MAPPER", "instances", r"INPUT\.MAPPER.*'instance'"),
        ("INPUT.RANDOM_FLIP", "both", r"INPUT\.RANDOM_FLIP.*vertical"),
        ("INPUT.CROP.TYPE", "random", r"INPUT\.CROP\.TYPE.*absolute"),
        ("TEST.COCO_BACKEND", "fast", r"TEST\.COCO_BACKEND.*pycocotools"),
        ("TEST.BEST_METRIC", "AP", r"TEST\.BEST_METRIC.*segm/"),
        ("TEST.BEST_METRIC", "mask/AP", r"TEST\.BEST_METRIC.*segm/"),
        ("TEST.BEST_METRIC", "segm/mAP", r"TEST\.BEST_METRIC.*AP50"),
        ("MODEL.FPN.NORM", "bn", r"MODEL\.FPN\.NORM.*BN, SyncBN"),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "l1", "smooth_l1"),
        ("SOLVER.WARMUP_METHOD", "cosine", "constant, linear"),
        ("SOLVER.IMS_PER_BATCH", 0, r"SOLVER\.IMS_PER_BATCH is 0.*between 1 and"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, r"SOLVER\.CHECKPOINT_PERIOD.*1 or more"),
        ("SOLVER.MAX_ITER", 0, r"SOLVER\.MAX_ITER.*1 or more"),
        ("SOLVER.BASE_LR", -0.1, r"SOLVER\.BASE_LR.*between 0 and 1000"),
        ("INPUT.MIN_SIZE_TRAIN", "()", r"INPUT\.MIN_SIZE_TRAIN.*\(800,\)"),
        ("INPUT.MIN_SIZE_TRAIN", "(0,)", r"INPUT\.MIN_SIZE_TRAIN"),
        ("INPUT.MAX_SIZE_TEST", -1, r"INPUT\.MAX_SIZE_TEST.*between 1 and"),
        ("MODEL.PIXEL_STD", "[1.0, 1.0]", r"MODEL\.PIXEL_MEAN.*MODEL\.PIXEL_STD \[1.0, 1.0\]"),
        ("MODEL.PIXEL_MEAN", "[]", r"MODEL\.PIXEL_MEAN"),
        ("MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]", r"MODEL\.PIXEL_STD.*each between 1e-06"),
        ("MODEL.RPN.PRE_NMS_TOPK_TEST", -1, r"MODEL\.RPN\.PRE_NMS_TOPK_TEST.*1 or more"),
        ("TEST.DETECTIONS_PER_IMAGE", -2, r"TEST\.DETECTIONS_PER_IMAGE.*-1 or more"),
        ("TEST.AUG.MIN_SIZES", "()", r"TEST\.AUG\.MIN_SIZES.*\(640, 800, 960\)"),
        ("TEST.AUG.MIN_SIZES", "(0, 800)", r"TEST\.AUG\.MIN_SIZES is \(0, 800\)"),
        ("TEST.AUG.MAX_SIZE", 0, r"TEST\.AUG\.MAX_SIZE is 0.*between 1 and"),
        ("MODEL.LOAD_PROPOSALS", True, "MODEL.LOAD_PROPOSALS"),
        ("MODEL.MASK_OUTPUT", "RLE", r"MODEL\.MASK_OUTPUT.*'RLE'.*bitmask, rle"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(key, value, named, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=named):
        load_cfg("", ["DATASETS.TRAIN", (), "DATASETS.TEST", (), key, value])


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("SOLVER.MAX_ITER", "many", "SOLVER.MAX_ITER is 'many'; it must be a whole number"),
        ("SOLVER.MAX_ITER", "1.5", "SOLVER.MAX_ITER is '1.5'; it must be a whole number"),
        ("SOLVER.BASE_LR", "1e-3x", "SOLVER.BASE_LR is '1e-3x'; it must be a number"),
        ("MODEL.MASK_ON", "maybe", "MODEL.MASK_ON is 'maybe'; it must be True or False"),
        ("SOLVER.STEPS", "30", "SOLVER.STEPS is '30'; it must be a list, such as (30000,)"),
        ("MODEL.WEIGHTS", "7", "MODEL.WEIGHTS is '7'; it must be a text"),
        ("SOLVER.CLIP_GRADIENTS", "True", "SOLVER.CLIP_GRADIENTS is 'True'; it must be a group"),
    ],
)
def test_wrong_type_is_told_in_words(tmp_path, key, value, message):
    with pytest.raises(ConfigError) as error:
        get_cfg().merge_from_list(["TEST.EVAL_PERIOD", "3", key, value])
    assert str(error.value).startswith(message) and "command line" in str(error.value)
    file = tmp_path / "bad.yaml"
    section, leaf = key.split(".")
    file.write_text(
        "VERSION: 2\nINPUT:\n  CROP:\n    SIZE: [1, 1]\nDATALOADER:\n  REPEAT_THRESHOLD: 1\n"
        f"{section}:\n  {leaf}: {value}\n"
    )
    with pytest.raises(ConfigError) as error:
        get_cfg().merge_from_file(str(file))
    assert f"{key} is" in str(error.value) or "group of keys" in str(error.value)
    assert "bad.yaml" in str(error.value)


def test_missing_file_is_answered_with_the_nearest(tmp_path):
    folder = tmp_path / "mask_rcnn"
    folder.mkdir()
    (folder / "mask_rcnn_tiny.yaml").touch()
    for wrong in ("mask_rcnn/mask_rcn_tiny.yaml", "mask_rcn/mask_rcnn_tiny.yaml"):
        with pytest.raises(ConfigError, match=rf"{wrong}.*mask_rcnn/mask_rcnn_tiny\.yaml"):
            get_cfg().merge_from_file(str(tmp_path / wrong))


def test_whole_number_for_a_fraction(tmp_path):
    file = tmp_path / "whole.yaml"
    file.write_text("SOLVER:\n  BASE_LR: 1\n  WARMUP_FACTOR: 0\nVERSION: 2\n")
    cfg = get_cfg()
    cfg.merge_from_file(str(file))
    assert isinstance(cfg.SOLVER.BASE_LR, float) and cfg.SOLVER.BASE_LR == 1
    assert cfg.SOLVER.WARMUP_FACTOR == 0


@pytest.mark.parametrize("number", ["0", 0])
def test_whole_number_for_a_fraction_on_the_command_line(number):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.POLARMASK.CENTER_RADIUS", number, "SOLVER.MAX_ITER", "3"])
    assert cfg.MODEL.POLARMASK.CENTER_RADIUS == 0
    assert isinstance(cfg.MODEL.POLARMASK.CENTER_RADIUS, float)
    assert isinstance(cfg.SOLVER.MAX_ITER, int)
    with pytest.raises(ConfigError, match="CENTER_RADIUS"):
        cfg.merge_from_list(["MODEL.POLARMASK.CENTER_RADIUS", "True"])


def test_odd_overrides_and_missing_file():
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_ITER"):
        get_cfg().merge_from_list(["SOLVER.MAX_ITER"])
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        get_cfg().merge_from_file("nowhere.yaml")


@pytest.mark.parametrize(
    "content", [b"", b"- a\n- b\n", b"MODEL: 3\n", b"\xff\xfe\x00", b"_BASE_: nowhere.yaml\n"]
)
def test_file_that_is_no_config_is_named(content, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        get_cfg().merge_from_file(str(file))


def test_option_behind_overrides_is_explained():
    with pytest.raises(ConfigError, match="--num-gpus"):
        get_cfg().merge_from_list(["SOLVER.MAX_ITER", 4, "--num-gpus", "2"])


def test_yaml_with_code_is_refused(tmp_path):
    marker = tmp_path / "marker"
    file = tmp_path / "evil.yaml"
    file.write_text(f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(ConfigError, match=r"evil\.yaml"):
        get_cfg().merge_from_file(str(file))
    assert not marker.exists()


def test_later_bases_win_and_the_file_itself_wins_over_all():
    cfg = model_zoo.get_config("cascade_mask_rcnn/cascade_mask_rcnn_tiny")
    assert cfg.MODEL.ROI_HEADS.NAME == "CascadeROIHeads"  # cascade over rcnn_fpn
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN == 200  # the file over cascade


def test_unknown_config_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="'mask_rcnn/mask_rcnn_R_50_FPN_3x'"):
        model_zoo.get_config_file("mask_rcnn/mask_rcnn_R50_FPN_3x.yaml")


def test_num_classes_follows_the_data_set():
    cfg = get_cfg()
    follow_dataset(cfg, 7, "mine")
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 7
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == get_cfg().MODEL.SEM_SEG_HEAD.NUM_CLASSES


@pytest.mark.parametrize("number", [3, 80])  # 80 is also the default: naming it makes it a choice
def test_num_classes_set_by_hand_must_agree(number):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", number])
    follow_dataset(cfg.clone(), number, "mine")
    with pytest.raises(ConfigError, match=rf"NUM_CLASSES\b.*\b{number}\b.*'mine'.*\b7\b"):
        follow_dataset(cfg.clone(), 7, "mine")


def test_num_classes_assigned_by_hand_must_agree():
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    with pytest.raises(ConfigError, match=r"NUM_CLASSES\b.*\b5\b"):
        follow_dataset(cfg, 7, "mine")


@pytest.mark.parametrize(
    "metric,wrong",
    [
        ("bbox/AP", ""),
        ("", ""),
        ("segm/AP-{}", ""),
        ("shapes_val/segm/AP50", ""),
        ("segm/AP-nothing", "no class 'nothing'"),
    ],
)
def test_best_metric_of_a_class(few_shapes, metric, wrong):
    metric = metric.format(MetadataCatalog.get(few_shapes).thing_classes[1])
    overrides = ["DATASETS.TRAIN", "()", "DATASETS.TEST", (few_shapes,), "TEST.BEST_METRIC", metric]
    if not wrong:
        assert metric == load_cfg("", overrides).TEST.BEST_METRIC
        return
    with pytest.raises(ConfigError, match=wrong):
        load_cfg("", overrides)
    with pytest.raises(ConfigError, match="segm/AP"):
        check_best_metric("segm/AP-cell", ["cell"])


def test_a_data_set_that_the_config_does_not_name_is_refused(few_shapes):
    metadata = MetadataCatalog.get(few_shapes)
    argument = f"{few_shapes}={metadata.json_file}:{metadata.image_root}"
    others = ["DATASETS.TRAIN", "('shapes_tiny_train',)", "DATASETS.TEST", "()"]
    with pytest.raises(ConfigError, match=rf"--dataset {few_shapes}\b.*shapes_tiny_train"):
        load_cfg("", others, [argument])
    (finding,) = diagnose("", others, [argument])
    assert finding.severity is Severity.ERROR and f"--dataset {few_shapes}" in finding.message
    named = ["DATASETS.TRAIN", (few_shapes,), "DATASETS.TEST", ()]
    assert (few_shapes,) == load_cfg("", named, [argument]).DATASETS.TRAIN
