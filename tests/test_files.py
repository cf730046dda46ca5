"""Files are whole or absent, whatever their writer is."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import Metadata

from instancezoo.files import PartialFile, open_atomically, remove_leftovers
from instancezoo.inference.pictures import VideoDrawing, write_picture


def test_a_path_for_writers_that_need_a_suffix(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "clip.mp4"
    for keep in (False, True):
        partial = PartialFile(target, ".mp4")
        assert partial.hidden.parent == target.parent and partial.hidden.suffix == ".mp4"
        partial.hidden.write_bytes(b"new")
        assert not target.exists()
        partial.close(keep=keep)
        assert [p.name for p in target.parent.iterdir()] == ["clip.mp4"] * keep
    assert target.read_bytes() == b"new"
    PartialFile(target).close(keep=False)  # nothing was written
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), open_atomically(target, "w") as file:
        file.write("half")
        raise error
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_failing_rename_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()  # a folder stands where the file is to go
    with pytest.raises(OSError), open_atomically(tmp_path / "a.txt") as file:
        file.write(b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_leftovers_of_the_named_files_alone_are_removed(tmp_path: Path) -> None:
    for name in ("a.pth", "b.json"):
        PartialFile(tmp_path / name).hidden.write_bytes(b"half")
    remove_leftovers(tmp_path, "*.pth")
    assert [p.name.startswith(".b.json.") for p in tmp_path.iterdir()] == [True]


def test_a_picture_that_does_not_fit_on_the_disk_is_absent(tmp_path, monkeypatch) -> None:
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    write_picture(tmp_path / "whole.png", picture)

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_picture(tmp_path / "half.png", picture)
    assert [p.name for p in tmp_path.iterdir()] == ["whole.png"]


def test_a_video_that_opencv_cannot_write_leaves_nothing(tmp_path, monkeypatch) -> None:
    drawing = VideoDrawing(tmp_path / "clip.mp4", 5.0, Metadata())
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda writer: False)
    with pytest.raises(OSError, match=r"clip\.mp4"):
        drawing._open(64, 48)
    drawing.close(keep=True)
    assert list(tmp_path.iterdir()) == []
