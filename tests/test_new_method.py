"""The method of docs/add_a_method.md works everywhere: one folder, its record and a config."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY

import instancezoo
from instancezoo.benchmark import measure_config
from instancezoo.checkpoint import convert_state_dict
from instancezoo.config import follow_dataset, load_cfg
from instancezoo.doctor import Severity
from instancezoo.doctor.diagnose import diagnose
from instancezoo.engine import Trainer
from instancezoo.methods import METHODS
from instancezoo.testing import build_seeded_model, keep_everything, keep_nothing, make_input

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = (REPOSITORY / "docs" / "add_a_method.md").read_text()
# path in the repository -> content
BLOCKS = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
METHOD = "class_maps"


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """Writes the page's files into a folder of its own, and adds the record; returns the config."""
    root = tmp_path_factory.mktemp("new_method")
    for name, content in BLOCKS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "configs" / "base").symlink_to(REPOSITORY / "configs" / "base")
    before, path = list(METHODS), list(instancezoo.__path__)
    instancezoo.__path__.append(str(root / "projects" / "instancezoo"))
    METHODS.append(importlib.import_module(f"instancezoo.{METHOD}").METHOD)
    yield str(root / "configs" / METHOD / f"{METHOD}_tiny.yaml")
    METHODS[:], instancezoo.__path__[:] = before, path
    del instancezoo.class_maps, META_ARCH_REGISTRY._obj_map["ClassMaps"]
    for module in [name for name in sys.modules if name.startswith(f"instancezoo.{METHOD}")]:
        del sys.modules[module]


@pytest.fixture
def cfg(config_file, few_shapes, tmp_path):
    cfg = load_cfg(
        config_file,
        [
            *("DATASETS.TRAIN", (few_shapes,), "DATASETS.TEST", (few_shapes,)),
            *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()),
            *("MODEL.DEVICE", "cpu", "TEST.NUM_PICTURES", 0, "OUTPUT_DIR", str(tmp_path)),
        ],
    )
    follow_dataset(cfg, 4, few_shapes)
    return cfg


def test_it_trains_and_is_evaluated(cfg):
    trainer = Trainer(keep_everything(cfg))
    before = trainer.bare_model.head.predict.weight.detach().clone()
    results = trainer.train()
    assert not torch.equal(before, trainer.bare_model.head.predict.weight)
    assert {"AP", "AP50"} <= set(results["segm"])


def test_thresholds_follow_the_record(cfg):
    image = make_input(96, 128, [])
    for change, count in ((keep_everything, 4), (keep_nothing, 0)):
        model = build_seeded_model(change(cfg.clone())).eval()
        with torch.no_grad():
            assert len(model([image])[0]["instances"]) == count


def test_the_doctor_runs_its_check_and_knows_its_limit(config_file, few_shapes):
    sets = ["DATASETS.TRAIN", f"('{few_shapes}',)", "DATASETS.TEST", "()"]
    findings = diagnose(config_file, [*sets, "MODEL.CLASS_MAPS.MAX_PER_IMAGE", 1])
    (own,) = [finding for finding in findings if finding.check == "one per class"]
    assert own.severity is Severity.WARNING and few_shapes in own.message
    (limit,) = [finding for finding in findings if finding.check == "detections"]
    assert limit.severity is Severity.WARNING and "MODEL.CLASS_MAPS.MAX_PER_IMAGE" in limit.remedy


def test_the_benchmark_tunes_its_threshold_and_times_its_stages(cfg):
    report = measure_config(cfg, size=(96, 128), num_detections=2, repeats=1)
    assert 2 <= report.num_detections <= 4
    for run in report.runs:
        assert {"rank classes", "decode", "head.tower", "backbone.bottom_up"} <= set(run.stages)


def test_its_published_checkpoints_are_recognised(config_file):
    names = (
        "class_head.out.weight",
        "resnet.layer1.0.conv1.weight",
        "class_head.convs.0.norm.bias",
    )
    converted = convert_state_dict({name: torch.ones(1) for name in names})
    assert converted.layout.method == "ClassMaps"
    assert "head.tower.0.norm.bias" in converted.state


def test_the_unit_tests_of_the_page_pass(config_file):
    space: dict = {}
    exec(BLOCKS[f"tests/methods/test_{METHOD}.py"], space)
    tests = [test for name, test in space.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()
