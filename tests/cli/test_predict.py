"""`instancezoo predict` over images, folders, patterns and videos, with the bad ones among them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO
from torch.optim.swa_utils import AveragedModel

import instancezoo
from instancezoo import model_zoo
from instancezoo.checkpoint import ZooCheckpointer
from instancezoo.cli.main import main
from instancezoo.errors import ZooError
from instancezoo.files import PartialFile
from instancezoo.inference import ImagePredictor, Input, gather_inputs
from instancezoo.inference.inputs import name_pictures
from instancezoo.inference.predict import name_classes
from instancezoo.inference.predictor import keep_confident
from instancezoo.testing import build_seeded_model

CONFIG = "mask_rcnn/mask_rcnn_tiny"
# ids that are neither contiguous nor sorted by name
CATEGORIES = [{"id": 3, "name": "cup"}, {"id": 7, "name": "ball"}]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    cfg = model_zoo.get_config(CONFIG, ["MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.DEVICE", "cpu"])
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(build_model(cfg).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    save_image(folder / "one.png")
    truth = {
        "images": [{"id": 1, "file_name": "one.png", "width": 64, "height": 48}],
        "annotations": [],
        "categories": CATEGORIES,
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    return f"cups={folder}/truth.json:{folder}"


def save_image(path: Path, height=48, width=64, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def save_video(path: Path, num_frames=3, height=48, width=64):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5.0, (width, height))
    for value in range(num_frames):
        writer.write(np.full((height, width, 3), 60 * value, dtype=np.uint8))
    writer.release()
    return path


@pytest.fixture
def predict(weights, dataset, tmp_path):
    def run(*inputs, confidence="0.2", extra=()):
        output = tmp_path / "out"
        code = main(
            ["predict", *map(str, inputs), "--config-file", model_zoo.get_config_file(CONFIG)]
            + ["--weights", str(weights), "--output", str(output), "--confidence", confidence]
            + ["--dataset", dataset, *extra, "--opts", "MODEL.DEVICE", "cpu"]
        )
        found = output / "predictions.json"
        return code, output, json.loads(found.read_text()) if found.exists() else None

    return run


def test_image_gives_picture_and_loadable_coco_file(predict, tmp_path):
    code, output, found = predict(save_image(tmp_path / "a.png"), confidence="0")
    assert code == 0
    assert found["images"] == [
        {"id": 1, "file_name": str(tmp_path / "a.png"), "width": 64, "height": 48}
    ]
    assert found["categories"] == CATEGORIES
    assert len(found["annotations"]) > 0
    for annotation in found["annotations"]:
        assert annotation["category_id"] in (3, 7)
        mask = coco_mask.decode(annotation["segmentation"])
        assert mask.shape == (48, 64)
        assert mask.sum() == annotation["area"]
    coco = COCO(str(output / "predictions.json"))
    assert len(coco.loadRes(found["annotations"]).getAnnIds()) == len(found["annotations"])
    picture = np.asarray(Image.open(output / "a.jpg"))
    assert picture.shape[1] / picture.shape[0] == pytest.approx(64 / 48, rel=0.01)
    assert sorted(p.name for p in output.iterdir()) == ["a.jpg", "predictions.json"]


def test_names_relative_to_a_folder(predict, tmp_path, monkeypatch):
    save_image(tmp_path / "photos" / "deep" / "a.png")
    save_video(tmp_path / "photos" / "b.mp4", num_frames=1)
    monkeypatch.chdir(tmp_path)
    extra = ["--no-pictures", "--relative-to"]
    for inputs, folder in (("photos", tmp_path / "photos"), (tmp_path / "photos", "photos/")):
        code, _, found = predict(inputs, extra=[*extra, str(folder)])
        assert code == 0
        names = {image["file_name"]: image.get("video") for image in found["images"]}
        assert names == {"deep/a.png": None, "b.mp4#0": "b.mp4"}


def test_an_input_outside_the_folder_of_names_is_told(predict, tmp_path, capsys):
    image = save_image(tmp_path / "a.png")
    extra = ["--no-pictures", "--relative-to", str(tmp_path / "elsewhere")]
    code, output, found = predict(image, extra=extra)
    assert code != 0 and found is None
    message = capsys.readouterr().err
    assert "a.png" in message and "elsewhere" in message and "--relative-to" in message


def test_picture_shows_the_predictions(predict, tmp_path):
    path = tmp_path / "grey.png"
    Image.new("RGB", (64, 48), (128, 128, 128)).save(path)
    _, output, found = predict(path, confidence="0")
    assert found["annotations"]
    assert np.asarray(Image.open(output / "grey.jpg")).std() > 5


def test_confidence_is_the_smallest_score(predict, tmp_path):
    path = save_image(tmp_path / "a.png")
    scores = [a["score"] for a in predict(path, confidence="0")[2]["annotations"]]
    middle = sorted(scores)[len(scores) // 2]
    kept = predict(path, confidence=str(middle))[2]["annotations"]
    assert 0 < len(kept) < len(scores)
    assert min(a["score"] for a in kept) >= middle


def test_nothing_found_is_no_error(predict, tmp_path):
    code, output, found = predict(save_image(tmp_path / "a.png"), confidence="1")
    assert (code, found["annotations"], len(found["images"])) == (0, [], 1)
    assert (output / "a.jpg").exists()


def test_unreadable_files_are_listed_and_the_rest_is_done(predict, tmp_path, capsys):
    good = [save_image(tmp_path / "in" / f"{name}.png") for name in "az"]
    torn = tmp_path / "in" / "m.png"
    torn.write_bytes(good[0].read_bytes()[:200])
    (tmp_path / "in" / "n.mp4").write_bytes(b"no video")
    code, output, found = predict(tmp_path / "in", tmp_path / "missing.jpg")
    assert code == 1
    assert [Path(i["file_name"]).name for i in found["images"]] == ["a.png", "z.png"]
    assert {p.name for p in output.iterdir()} == {"a.jpg", "z.jpg", "predictions.json"}
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not done")]
    assert len(failed) == 3
    assert all(any(n in line for line in failed) for n in ("m.png", "n.mp4", "missing.jpg"))


def test_same_names_in_two_folders_keep_both_pictures(predict, tmp_path):
    paths = [save_image(tmp_path / folder / "a.png", seed=i) for i, folder in enumerate("xy")]
    code, output, found = predict(*paths)
    assert code == 0
    assert len(found["images"]) == 2
    assert (output / "a.jpg").read_bytes() != (output / "a_2.jpg").read_bytes()


def test_odd_images_are_read(predict, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("L", (30, 20), 90).save(folder / "grey.png")
    Image.new("RGBA", (30, 20), (9, 9, 9, 9)).save(folder / "rgba.png")
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    deep = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (30, 20)).save(folder / "turned.jpg", exif=exif)
    code, _, found = predict(folder)
    assert code == 0
    sizes = {Path(i["file_name"]).stem: (i["width"], i["height"]) for i in found["images"]}
    assert sizes == {
        "grey": (30, 20),
        "rgba": (30, 20),
        "pixel": (1, 1),
        "deep": (30, 20),
        "turned": (20, 30),
    }


def test_video_gives_video_with_all_frames(predict, tmp_path):
    code, output, found = predict(save_video(tmp_path / "clip.mp4"), confidence="0")
    assert code == 0
    assert [image["frame"] for image in found["images"]] == [0, 1, 2]
    assert len({image["file_name"] for image in found["images"]}) == 3
    video = cv2.VideoCapture(str(output / "clip.mp4"))
    frames = []
    while (frame := video.read())[0]:
        frames.append(frame[1])
    assert [f.shape for f in frames] == [(48, 64, 3)] * 3
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    assert sorted(p.name for p in output.iterdir()) == ["clip.mp4", "predictions.json"]


def test_video_of_odd_size(predict, tmp_path):
    path = tmp_path / "odd.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (65, 49))
    writer.write(np.zeros((49, 65, 3), dtype=np.uint8))
    writer.release()
    code, output, _ = predict(path)
    assert code == 0
    assert cv2.VideoCapture(str(output / "odd.mp4")).read()[1].shape == (48, 64, 3)


def test_leftovers_of_a_killed_run_are_removed(predict, tmp_path):
    for name, suffix in [("clip.mp4", ".mp4"), ("b.jpg", ".tmp"), ("predictions.json", ".tmp")]:
        PartialFile(tmp_path / "out" / name, suffix)
    code, output, _ = predict(save_image(tmp_path / "a.png"))
    assert code == 0
    assert sorted(path.name for path in output.iterdir()) == ["a.jpg", "predictions.json"]


def test_no_pictures(predict, tmp_path):
    _, output, _ = predict(save_image(tmp_path / "a.png"), extra=["--no-pictures"])
    assert [p.name for p in output.iterdir()] == ["predictions.json"]


def test_no_input_is_one_clear_line(predict, tmp_path, capsys):
    code, output, _ = predict(tmp_path / "*.jpg")
    assert code == 1
    assert not output.exists()
    message = capsys.readouterr().err
    assert "no image or video" in message
    assert "Traceback" not in message


def test_weights_of_another_model_are_one_clear_line(predict, tmp_path, capsys):
    other = tmp_path / "other.pth"
    torch.save({"unrelated.weight": torch.zeros(3)}, other)
    code, _, _ = predict(save_image(tmp_path / "a.png"), extra=["--weights", str(other)])
    assert code == 1
    assert str(other) in capsys.readouterr().err


def test_weights_of_another_method_and_the_remedy(weights, tmp_path, capsys):
    words = ["predict", str(save_image(tmp_path / "a.png")), "--weights", str(weights)]
    words += ["--config-file", model_zoo.get_config_file("fcos/fcos_tiny")]
    words += ["--output", str(tmp_path / "out"), "--opts", "MODEL.DEVICE", "cpu"]
    words += ["DATASETS.TEST", "()"]
    assert main(words) == 1
    message = capsys.readouterr().err
    assert "does not fit the model FCOS" in message
    assert "of another method: it has proposal_generator.rpn_head, roi_heads.box_head" in message
    assert "the model has proposal_generator.fcos_head" in message
    assert "backbone, or" not in message
    remedy = re.search(r"(MODEL\.\w+ True) \(behind --opts", message)
    assert main([*words, *remedy[1].split()]) == 0


def test_command_prints_no_warnings_of_dependencies(tmp_path):
    words = ["predict", str(save_image(tmp_path / "a.png")), "--output", str(tmp_path / "out")]
    run = subprocess.run(
        [sys.executable, "-m", "instancezoo.cli", *words, "--config-file", "nowhere.yaml"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(instancezoo.__file__).parents[1])},
    )
    assert run.returncode == 1
    assert "nowhere.yaml" in run.stderr
    assert "Warning" not in run.stderr


@pytest.mark.parametrize(("test_set", "names"), [("('nowhere',)", ["0", "1"]), ("()", ["0", "1"])])
def test_without_the_data_set_classes_are_numbers(weights, tmp_path, test_set, names):
    image, output = save_image(tmp_path / "a.png"), tmp_path / "out"
    code = main(
        ["predict", str(image), "--config-file", model_zoo.get_config_file(CONFIG)]
        + ["--weights", str(weights), "--output", str(output), "--opts", "MODEL.DEVICE", "cpu"]
        + ["MODEL.ROI_HEADS.NUM_CLASSES", "2", "DATASETS.TEST", test_set]
    )
    found = json.loads((output / "predictions.json").read_text())
    assert (code, [c["name"] for c in found["categories"]][:2]) == (0, names)


def test_misspelt_key_is_one_clear_line(predict, tmp_path, capsys):
    image = save_image(tmp_path / "a.png")
    with pytest.raises(SystemExit):
        predict(image, extra=["--confidence", "3"])
    with pytest.raises(SystemExit):
        predict(image, extra=["--confidence", "abc"])
    assert "'abc'" in capsys.readouterr().err
    words = ["predict", str(image), "--config-file", model_zoo.get_config_file(CONFIG)]
    assert main([*words, "--output", str(tmp_path), "--opts", "MODEL.WIGHTS", "x"]) == 1
    assert "MODEL.WEIGHTS" in capsys.readouterr().err


def test_gathering_keeps_order_and_drops_repeats(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "sub/c.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = gather_inputs([str(tmp_path / "b.jpg"), str(tmp_path), str(tmp_path / "*.jpg")])
    assert [(i.path.name, i.is_video) for i in found] == [
        ("b.jpg", False),
        ("a.PNG", False),
        ("c.mp4", True),
    ]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path):
    (tmp_path / "a[1].jpg").touch()
    assert len(gather_inputs([str(tmp_path / "a[1].jpg")])) == 1


def test_pictures_never_overwrite_an_input(tmp_path):
    with pytest.raises(ZooError, match="--output"):
        name_pictures([Input(tmp_path / "a.jpg", False)], tmp_path)


def test_picture_names_are_unique_whatever_the_inputs():
    paths = ["x/a.jpg", "y/a.png", "z/A.jpg", "x/a_2.jpg", "x/a.mp4"]
    inputs = [Input(Path(p), p.endswith("mp4")) for p in paths]
    names = [p.name.lower() for p in name_pictures(inputs, Path("out"))]
    assert len(set(names)) == len(paths)


def test_classes_without_metadata_are_numbers():
    assert name_classes({}, 2) == (["0", "1"], [0, 1])


def test_checkpoint_makes_the_backbones_own_weights_needless(tmp_path):
    name = "mask_rcnn/mask_rcnn_efficientnet_lite0_tiny"
    own = ["MODEL.TIMM.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    path = tmp_path / "trained.pth"
    torch.save(build_model(model_zoo.get_config(name, own)).state_dict(), path)
    gone = ["MODEL.TIMM.WEIGHTS", str(tmp_path / "gone.pth"), "MODEL.DEVICE", "cpu"]
    cfg = model_zoo.get_config(name, [*gone, "MODEL.WEIGHTS", str(path)])
    instances = ImagePredictor(cfg, confidence=1.0)(np.zeros((20, 30, 3), dtype=np.uint8))
    assert (len(instances), instances.image_size) == (0, (20, 30))


def test_predictor_equals_stock_detectron2(weights):
    overrides = ["MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.DEVICE", "cpu"]
    cfg = model_zoo.get_config(CONFIG, [*overrides, "MODEL.WEIGHTS", str(weights)])
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.2
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    ours = ImagePredictor(cfg, confidence=0.2)(image)
    stock = DefaultPredictor(cfg)(image)["instances"]
    assert len(ours) > 0
    torch.testing.assert_close(ours.pred_boxes.tensor, stock.pred_boxes.tensor)
    torch.testing.assert_close(ours.scores, stock.scores)
    assert torch.equal(ours.pred_masks, stock.pred_masks)


@pytest.mark.parametrize("with_average", [True, False])
def test_averaged_weights_predict_if_the_config_asks_for_them(tmp_path, with_average):
    overrides = ["MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.DEVICE", "cpu"]
    cfg = model_zoo.get_config(CONFIG, [*overrides, "MODEL.EMA.ENABLED", with_average])
    models = [build_seeded_model(cfg, seed) for seed in (1, 2)]
    checkpointer = ZooCheckpointer(models[0], str(tmp_path), ema=AveragedModel(models[1]))
    checkpointer.save("model")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    loaded = ImagePredictor(cfg).model.state_dict()
    expected = models[with_average].state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize("as_rle", [True, False])
def test_keeping_confident_ones_keeps_their_masks(as_rle):
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    masks[0, 0, 0] = masks[2, 3, 4] = True
    instances = Instances((4, 5))
    instances.pred_boxes = Boxes(torch.arange(12.0).reshape(3, 4))
    instances.scores = torch.tensor([0.9, 0.1, 0.5])
    instances.pred_masks = ["first", "second", "third"] if as_rle else masks
    kept = keep_confident(instances, 0.5)
    assert kept.pred_boxes.tensor[:, 0].tolist() == [0, 8]
    expected = ["first", "third"] if as_rle else masks[[0, 2]]
    assert kept.pred_masks == expected if as_rle else torch.equal(kept.pred_masks, expected)
