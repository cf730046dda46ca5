"""Files are whole or absent, whatever their writer is; folders are locked."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import Metadata

from instancezoo import files
from instancezoo.errors import ZooError
from instancezoo.files import (
    CACHE_VARIABLE,
    PartialFile,
    describe_os_error,
    lock_folder,
    open_atomically,
    remove_leftovers,
)
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


def test_leftovers_of_dead_writers_alone_are_removed(tmp_path: Path) -> None:
    for name in ("a.pth", "b.json"):  # forgotten, as after a kill
        PartialFile(tmp_path / name).hidden.write_bytes(b"half")
    living = PartialFile(tmp_path / "clip.mp4", ".mp4")
    PartialFile(tmp_path / "clip.mp4", ".mp4")
    (tmp_path / ".others.tmp").write_bytes(b"")
    remove_leftovers(tmp_path, "*.pth")
    assert len(list(tmp_path.iterdir())) == 4
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([living.hidden, tmp_path / ".others.tmp"])
    remove_leftovers(tmp_path / "absent")
    living.close(keep=True)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError) as error, open_atomically(tmp_path / "a.bin") as file:
            file.write(bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert describe_os_error(error.value) == f"{tmp_path}/a.bin: File too large"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert "INSTANCEZOO_CACHE" in describe_os_error(error.value)


def test_errors_without_a_path_are_one_line() -> None:
    assert describe_os_error(OSError("two\nlines")) == "two lines"
    assert describe_os_error(ConnectionResetError(104, "reset")) == "[Errno 104] reset"


LOCKING = "import sys; from instancezoo.files import lock_folder; lock_folder(sys.argv[1])"


def test_the_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    holding = f"{LOCKING}; print('locked', flush=True); sys.stdin.read()"
    path = os.pathsep.join(sys.path)
    start = {"env": {**os.environ, "PYTHONPATH": path}, "text": True}
    first = subprocess.Popen(
        [sys.executable, "-c", holding, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **start,
    )
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(
            ZooError, match=rf"{folder} is in use.*process {first.pid} on .*OUTPUT_DIR"
        ):
            lock_folder(folder)
        first.kill()
    lock_folder(folder)
    lock_folder(folder)  # this process has it
    second = subprocess.run(
        [sys.executable, "-c", LOCKING, str(folder)], capture_output=True, check=False, **start
    )
    assert f"process {os.getpid()}" in second.stderr


def test_a_folder_that_cannot_be_locked(tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ZooError, match=rf"OUTPUT_DIR {folder} .*another OUTPUT_DIR"):
            lock_folder(folder)

    def fail(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", fail)
    lock_folder(tmp_path / "run")
    assert "no locks" in caplog.text


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
