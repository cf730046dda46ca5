"""The files that words of a command line stand for."""

import logging
from pathlib import Path

import pytest

from instancezoo.inference.inputs import gather_inputs


def test_folders_are_searched_through_links_and_others_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for folder in (photos, elsewhere):
        folder.mkdir()
    names = ("a.png", "b.JFIF", "c.npy", "._a.png", "d.heic", "e.txt")
    for path in [*(photos / name for name in names), elsewhere / "f.jpe"]:
        path.touch()
    (photos / "link").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(photos)

    with caplog.at_level(logging.WARNING):
        found = gather_inputs([str(photos)])

    assert [item.path.name for item in found] == ["a.png", "b.JFIF", "c.npy", "f.jpe"]
    (message,) = [r.message for r in caplog.records if "photos" in r.message]
    assert "2 files of other kinds" in message and ".heic, .txt" in message
