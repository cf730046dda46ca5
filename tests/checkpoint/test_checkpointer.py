"""Loading is strict and explains; saving survives a kill."""

import functools
import io
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from torch import nn
from torch.optim.swa_utils import AveragedModel

from instancezoo.checkpoint import CheckpointError, ZooCheckpointer, save_safetensors
from instancezoo.checkpoint.checkpointer import is_whole, use_average
from instancezoo.checkpoint.mismatch import guess_class_counts
from instancezoo.checkpoint.reader import AUTHOR


class Net(nn.Module):
    """A detector in little: a backbone and a head that counts classes."""

    def __init__(self, num_classes: int = 4, width: int = 3) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.zeros(3))
        self.backbone = nn.Linear(2, width)
        self.cls_score = nn.Linear(width, num_classes + 1)
        self.mask = nn.Linear(width, num_classes)


def make_net(seed: int = 0, **sizes: int) -> Net:
    torch.manual_seed(seed)
    return Net(**sizes)


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in net.state_dict().values()]


def is_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_save_and_resume(tmp_path: Path) -> None:
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net.mask(net.backbone(torch.ones(1, 2))).sum().backward()
    optimizer.step()
    checkpointer = ZooCheckpointer(net, str(tmp_path), optimizer=optimizer)
    checkpointer.save("model_0000009", iteration=9, history=[1.5, 2], best=np.float64(3))

    other = make_net(1)
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.3)
    resumed = ZooCheckpointer(other, str(tmp_path), optimizer=other_optimizer)
    rest = resumed.resume_or_load("", resume=True)
    assert (rest["iteration"], rest["history"], rest["best"]) == (9, [1.5, 2], 3)
    assert is_same(weights(other), weights(net))
    state = other_optimizer.state_dict()
    assert state["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(state["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_without_resume_only_the_model_is_loaded(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(make_net().parameters(), lr=0.1)
    saver = ZooCheckpointer(make_net(), str(tmp_path), optimizer=optimizer)
    saver.save("model_final", iteration=9)
    other = torch.optim.SGD(make_net(1).parameters(), lr=0.3)
    loader = ZooCheckpointer(make_net(1), str(tmp_path), optimizer=other)
    loader.resume_or_load(str(tmp_path / "model_final.pth"), resume=False)
    assert other.param_groups[0]["lr"] == 0.3
    assert is_same(weights(loader.model), weights(saver.model))


def test_stock_detectron2_reads_and_writes_the_same_files(tmp_path: Path) -> None:
    ours = ZooCheckpointer(make_net(), str(tmp_path))
    ours.save("model_final", iteration=1)
    stock = DetectionCheckpointer(make_net(1), str(tmp_path))
    assert stock.resume_or_load("", resume=True)["iteration"] == 1
    assert is_same(weights(stock.model), weights(ours.model))
    stock.save("model_0000002", iteration=2)
    back = ZooCheckpointer(make_net(2), str(tmp_path))
    assert back.resume_or_load("", resume=True)["iteration"] == 2
    assert is_same(weights(back.model), weights(ours.model))


def test_periodic_checkpointer_keeps_the_last(tmp_path: Path) -> None:
    periodic = PeriodicCheckpointer(ZooCheckpointer(make_net(), str(tmp_path)), 2, 6, max_to_keep=1)
    for iteration in range(6):
        periodic.step(iteration)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "last_checkpoint",
        "model_0000005.pth",
        "model_final.pth",
    ]


def test_safetensors_and_pickle_are_loaded(tmp_path: Path) -> None:
    source, net = make_net(), make_net(1)
    save_safetensors(tmp_path / "w.safetensors", source.state_dict())
    ZooCheckpointer(net).load(str(tmp_path / "w.safetensors"))
    assert is_same(weights(net), weights(source))


def test_pixel_mean_may_be_absent(tmp_path: Path) -> None:
    state = make_net().state_dict()
    del state["pixel_mean"]
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.ones(3, 4)
    torch.save(state, tmp_path / "w.pth")
    ZooCheckpointer(make_net(1)).load(str(tmp_path / "w.pth"))


def test_other_class_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "w.pth")
    source = make_net(num_classes=80)
    torch.save({"model": source.state_dict()}, path)
    net = make_net(1, num_classes=4)
    before = weights(net)
    with pytest.raises(CheckpointError, match=r"\b80\b.*\b4\b") as error:
        ZooCheckpointer(net).load(path)
    assert path in str(error.value) and "MODEL.WEIGHTS_ALLOW_PARTIAL" in str(error.value)
    assert "--dataset" in str(error.value)
    assert is_same(weights(net), before), "a refused file changes nothing"

    with caplog.at_level(logging.WARNING):
        ZooCheckpointer(net, allow_partial=True).load(path)
    assert torch.equal(net.backbone.weight, source.backbone.weight)
    assert torch.equal(net.mask.weight, before[-2]), (
        "the head that does not fit stays as initialised"
    )
    assert re.search(r"mask\.weight.*\(80, 3\).*\(4, 3\)", caplog.text)


def test_other_backbone(tmp_path: Path) -> None:
    torch.save(make_net(width=5).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"\bbackbone\b(?!\.)"):
        ZooCheckpointer(make_net()).load(str(tmp_path / "w.pth"))


def test_other_method(tmp_path: Path) -> None:
    state = make_net().state_dict()
    state = {name.replace("mask", "kernel"): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"mask\.weight.*\bmethod\b"):
        ZooCheckpointer(make_net()).load(str(tmp_path / "w.pth"))


def test_other_method_goes_before_other_backbone(tmp_path: Path) -> None:
    names = {"cls_score": "head.cate.predict", "mask": "head.kernel"}
    state = {}
    for name, tensor in make_net(width=5).state_dict().items():
        module, _, rest = name.partition(".")
        state[f"{names[module]}.{rest}" if module in names else name] = tensor
    expected = r"\bmethod\b.*head\.cate, head\.kernel.*cls_score\.weight"
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=expected):
        ZooCheckpointer(make_net()).load(str(tmp_path / "w.pth"))
    converted = {"model": state, "__author__": f"{AUTHOR}, from X", "config": "solo/solo_tiny"}
    torch.save(converted, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"solo/solo_tiny.*Net"):
        ZooCheckpointer(make_net()).load(str(tmp_path / "w.pth"))


def test_other_norm_is_no_other_method(tmp_path: Path) -> None:
    state = make_net().state_dict()
    state["mask.norm.weight"] = state.pop("mask.bias")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"\bnorm\b(?!\.\w)"):
        ZooCheckpointer(make_net()).load(str(tmp_path / "w.pth"))


def test_nothing_in_common(tmp_path: Path) -> None:
    path = str(tmp_path / "w.pth")
    torch.save({"x.weight": torch.ones(1)}, path)
    for allow_partial in (False, True):
        with pytest.raises(CheckpointError, match=r"w\.pth.*layout"):
            ZooCheckpointer(make_net(), allow_partial=allow_partial).load(path)


def test_absent_file_and_a_second_try(tmp_path: Path) -> None:
    checkpointer = ZooCheckpointer(make_net())
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        checkpointer.load(str(tmp_path / "absent.pth"))
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"torn\.pth"):
        checkpointer.load(str(tmp_path / "torn.pth"))
    torch.save(make_net().state_dict(), tmp_path / "w.pth")
    checkpointer.load(str(tmp_path / "w.pth"))
    assert checkpointer.load("") == {}


def test_torn_files_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpointer = ZooCheckpointer(make_net(), str(tmp_path))
    assert not checkpointer.has_checkpoint()
    for number in (1, 2, 3):
        checkpointer.save(f"model_000000{number}", iteration=number)
    newest = tmp_path / "model_0000003.pth"
    assert checkpointer.get_checkpoint_file() == str(newest)

    content = newest.read_bytes()
    newest.write_bytes(content[:-100])
    with caplog.at_level(logging.WARNING):
        assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000002.pth")
    assert "model_0000003.pth" in caplog.text

    middle = len(content) // 2  # the right length, and bytes that never reached the disk
    newest.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    second = tmp_path / "model_0000002.pth"
    second.write_bytes(b"")
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1

    (tmp_path / "last_checkpoint").unlink()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")


def test_last_checkpoint_decides_among_whole_files(tmp_path: Path) -> None:
    checkpointer = ZooCheckpointer(make_net(), str(tmp_path))
    for number in (5, 9, 7):  # 9 is of an older, longer run
        checkpointer.save(f"model_000000{number}", iteration=number)
    os.utime(tmp_path / "model_0000009.pth", (1, 1))
    torch.save({}, tmp_path / "pretrained.pth")  # of the user
    assert checkpointer.get_checkpoint_file().endswith("model_0000007.pth")
    # killed after a save, before its tag
    checkpointer.save("model_0000008", iteration=8)
    checkpointer.tag_last_checkpoint("model_0000007.pth")
    assert checkpointer.get_checkpoint_file().endswith("model_0000008.pth")
    checkpointer.tag_last_checkpoint("absent.pth")
    assert checkpointer.get_checkpoint_file().endswith("model_0000008.pth")


def test_a_failing_save_leaves_the_old_file(tmp_path: Path) -> None:
    checkpointer = ZooCheckpointer(make_net(), str(tmp_path))
    checkpointer.save("model_final", iteration=1)
    with pytest.raises(Exception, match="pickle"):
        checkpointer.save("model_final", iteration=lambda: None)
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]


SAVE_FOREVER = """
import sys, torch
from instancezoo.checkpoint import ZooCheckpointer
checkpointer = ZooCheckpointer(torch.nn.Linear(1000, 500), sys.argv[1], save_to_disk=True)
start = checkpointer.resume_or_load("", resume=True).get("iteration", -1) + 1
print("ready", flush=True)
for i in range(start, start + 100000):
    torch.nn.init.constant_(checkpointer.model.weight, i)
    checkpointer.save("model_final" if i % 2 else f"model_{i % 6:07d}", iteration=i)
    print(i, flush=True)
"""


def save_and_die(folder: str, stage: str, call: int) -> None:
    """Save iteration 2 over iteration 1, and be killed at the given call of a step of saving."""
    die = functools.partial(os.kill, os.getpid(), signal.SIGKILL)

    def save_half(data, file) -> None:
        buffer = io.BytesIO()
        save(data, buffer)
        file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        file.flush()
        die()

    calls = iter(range(9))
    save = torch.save
    if stage == "write":
        torch.save = save_half
    else:
        step = getattr(os, stage)
        setattr(os, stage, lambda *args: die() if next(calls) == call else step(*args))
    ZooCheckpointer(make_net(2), folder, save_to_disk=True).save("model_final", iteration=2)


@pytest.mark.parametrize(
    ("stage", "call", "wanted"),
    [
        ("write", 0, 1),
        ("fsync", 0, 1),  # of the checkpoint
        ("replace", 0, 1),
        ("fsync", 1, 2),  # of the folder: the new file has its name
        ("replace", 1, 2),  # of the tag
    ],
)
def test_kill_at_every_step_of_a_save(tmp_path: Path, stage: str, call: int, wanted: int) -> None:
    ZooCheckpointer(make_net(1), str(tmp_path)).save("model_final", iteration=1)
    process = multiprocessing.get_context("fork").Process(
        target=save_and_die, args=(str(tmp_path), stage, call)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    checkpointer = ZooCheckpointer(make_net(), str(tmp_path))
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == wanted
    assert is_same(weights(checkpointer.model), weights(make_net(wanted)))
    checkpointer.save("model_final")
    assert not list(tmp_path.glob(".*")), "what the killed writer left is removed"


def test_kill_at_random_moments_loses_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    projects = Path(__file__).resolve().parents[2] / "projects"
    environment = {**os.environ, "PYTHONPATH": str(projects), "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline()  # one is saved
        time.sleep(random.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        saved = [int(line) for line in process.communicate()[0].split() if line.isdigit()]

        net = nn.Linear(1000, 500)
        checkpointer = ZooCheckpointer(net, str(tmp_path))
        iteration = checkpointer.resume_or_load("", resume=True)["iteration"]
        assert iteration >= max(saved, default=0)
        assert (net.weight == iteration).all()
        assert all(is_whole(path) for path in tmp_path.glob("*.pth"))


@pytest.mark.parametrize(
    ("shapes", "wanted"),
    [
        ([((81, 9), (5, 9)), ((81,), (5,)), ((320, 9), (16, 9)), ((80, 2), (4, 2))], (80, 4)),
        ([((81, 9), (5, 9)), ((320, 9), (16, 9))], (80, 4)),
        ([((80, 9, 3, 3), (4, 9, 3, 3))], (80, 4)),
        ([((80, 9), (4, 8))], None),
        ([((80, 9), (4, 9)), ((7, 9), (5, 9))], None),
        # a point head takes the coarse logits of each class
        ([((4, 9), (6, 9)), ((8, 7, 1), (8, 9, 1)), ((3, 7, 1), (5, 9, 1))], (3, 5)),
        ([((3, 9), (5, 9)), ((8, 7), (8, 10))], None),
        ([((8, 7), (8, 9))], None),
        ([], None),
    ],
)
def test_class_counts_behind_shapes(shapes, wanted) -> None:
    assert guess_class_counts(shapes) == wanted


def test_average_of_weights_replaces_them_if_there_is_one(tmp_path: Path) -> None:
    net, average = make_net(), AveragedModel(make_net(1))
    ZooCheckpointer(net, str(tmp_path), ema=average).save("model")
    other = make_net(2)
    rest = ZooCheckpointer(other).load(str(tmp_path / "model.pth"))
    assert is_same(weights(other), weights(net))
    use_average(other, {})
    assert is_same(weights(other), weights(net))
    use_average(other, rest)
    assert is_same(weights(other), weights(average.module))


@pytest.mark.parametrize("address", ["https://localhost:9/model.pkl", "nowhere://model.pkl"])
def test_address_that_cannot_be_fetched(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=re.escape(address)):
        ZooCheckpointer(make_net()).load(address)
