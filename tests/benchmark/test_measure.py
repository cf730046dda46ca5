"""`instancezoo benchmark`: which stages there are and that they add up; times are not looked at."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from instancezoo.benchmark import Report, Run, format_report, measure_config
from instancezoo.benchmark.threshold import build_untrained
from instancezoo.cli.main import main
from instancezoo.testing import get_tiny_config, list_tiny_configs, make_image

COMMON = {"resize image", "normalise and pad", "backbone, rest", "backbone.bottom_up", "other"}
STAGES = {
    "solov2/solov2_tiny": {"dynamic convolution", "Matrix NMS", "head.mask_branch", "decode"},
    "solo/decoupled_solo_tiny": {"Matrix NMS", "head.mask_towers", "head.predict_x"},
    "mask_rcnn/mask_rcnn_tiny": {
        "proposal_generator.rpn_head",
        "box NMS",
        "roi_heads.box_head",
        "roi_heads.mask_head",
    },
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_of_a_method(name):
    report = measure_config(get_tiny_config(name), size=(96, 128), num_detections=5, repeats=1)
    assert report.num_detections >= 5
    assert report.image_size == (96, 128) and min(report.input_size) == 128
    assert [run.masks for run in report.runs] == ["rle", "bitmask"]
    for run, mask_stage in zip(report.runs, ("masks to RLE", "masks to bitmask"), strict=True):
        assert (COMMON | STAGES[name] | {mask_stage}) <= set(run.stages)
        assert not any("lateral" in stage for stage in run.stages)
        assert all(milliseconds >= 0 for milliseconds in run.stages.values())
        assert run.total_ms > 0
    json.dumps(report.to_json())


@pytest.mark.parametrize("name", list_tiny_configs())
def test_an_untrained_model_finds_about_as_many_as_asked(name):
    batch = [{"image": make_image(128, 160).float(), "height": 128, "width": 160}]
    torch.manual_seed(0)
    model, _ = build_untrained(get_tiny_config(name), batch, 4)
    assert "forward" not in vars(model.backbone)
    with torch.no_grad():
        found = len(model(batch)[0]["instances"])
    assert 4 <= found <= 40


def test_table():
    runs = [
        Run("rle", 12.0, {"backbone": 6.0, "masks to RLE": 4.0}),
        Run("bitmask", 11.0, {"backbone": 6.0, "masks to bitmask": 6.0}),
    ]
    report = Report("a.yaml", "cpu", "w.pth", (10, 20), (100, 200), 7, 3, runs)
    rows = {line.split("  ")[0]: line.split()[-4:] for line in format_report(report).splitlines()}
    assert rows["backbone"] == ["6.0", "60.0%", "6.0", "50.0%"]
    assert rows["masks to bitmask"][-2:] == ["6.0", "50.0%"]
    assert rows["sum"] == ["10.0", "100.0%", "12.0", "100.0%"]
    assert rows["total, not split"][-2:] == ["12.0", "11.0"]
    assert "7 detections" in format_report(report)


@pytest.mark.parametrize(
    "words", [["--size", "0", "64"], ["--detections", "-1"], ["--repeat", "x"]]
)
def test_numbers_must_be_above_zero(words, capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", "--config-file", "any.yaml", *words])
    assert f"argument {words[0]}" in capsys.readouterr().err


def test_command(tmp_path, capsys):
    picture, numbers = tmp_path / "a.png", tmp_path / "out" / "numbers.json"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(picture)
    words = ["benchmark", "--config-file", "configs/solov2/solov2_tiny.yaml", "--repeat", "1"]
    words += ["--image", str(picture), "--detections", "3", "--json", str(numbers)]
    assert main([*words, "MODEL.DEVICE", "cpu"]) == 0
    assert "Matrix NMS" in capsys.readouterr().out
    written = json.loads(numbers.read_text())
    assert written["image_size"] == [40, 50] and len(written["runs"]) == 2
    assert main([*words[:3], "--image", str(tmp_path / "none.png")]) == 1
    assert "none.png" in capsys.readouterr().err
