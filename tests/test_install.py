"""The script that installs Detectron2, without the network, and the commands that name it."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "requirements" / "install_detectron2.py"


def test_metadata_fits_any_python_and_asks_for_nothing(tmp_path):
    folder = tmp_path / "sal_detectron2-0.7.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Name: x\nRequires-Dist: numpy<2\nRequires-Dist: black\n\nü\n", "utf-8"
    )
    (folder / "WHEEL").write_text("Root-Is-Purelib: false\nTag: cp310-cp310-linux_x86_64\n")
    runpy.run_path(str(SCRIPT))["_correct_metadata"](tmp_path)
    assert (folder / "METADATA").read_text("utf-8") == "Name: x\n\nü\n"
    assert (folder / "WHEEL").read_text() == "Root-Is-Purelib: false\nTag: py3-none-any\n"


def test_another_detectron2_stays(tmp_path, monkeypatch, capsys):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "site"))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("pip was called"))
    runpy.run_path(str(SCRIPT))["main"]()
    assert str(tmp_path) in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "Makefile", "pyproject.toml"])
def test_the_files_that_name_the_script(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    named = re.findall(r"requirements/\w+\.(?:py|txt)", text)
    assert "requirements/install_detectron2.py" in named
    assert all((ROOT / path).is_file() for path in named)
