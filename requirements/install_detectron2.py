"""Install Detectron2 beside the running Python, without a compiler.

    python requirements/install_detectron2.py

The wheel that detectron2.txt pins is marked for Python 3.10, because of a compiled part that
InstanceZoo does not use. So pip is told to take it for that version, and to put it into a folder,
which pip does not compare with the running version.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().with_name("detectron2.txt")
OPTIONS = (
    "--no-deps --require-hashes --only-binary=:all: "
    "--python-version 3.10 --implementation cp --abi none --platform any"
)


def main() -> None:
    """Install or replace the pinned build; another Detectron2 stays."""
    site = Path(sysconfig.get_path("purelib"))
    found = importlib.util.find_spec("detectron2")
    if found is not None and not list(site.glob("sal_detectron2-*.dist-info")):
        print(f"Detectron2 is installed already: {found.origin}")
        return
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", *OPTIONS.split()]
        done = subprocess.run([*pip, "--target", folder, "-r", str(REQUIREMENTS)])
        if done.returncode:
            sys.exit("Detectron2 was not installed: pip's message is above")
        _correct_metadata(Path(folder))
        # The wheel's third folder, `tools`, is no part of the package.
        for part in ("detectron2", "sal_detectron2-*.dist-info"):
            for old in site.glob(part):
                shutil.rmtree(old)
            for new in Path(folder).glob(part):
                shutil.move(new, site / new.name)
    print(f"Detectron2 is installed in {site}")


def _correct_metadata(folder: Path) -> None:
    """Remove what `pip check` would report: the Python version, and requirements such as numpy<2.

    InstanceZoo's own requirements include those that are needed.
    """
    for name, line, replacement in (
        ("METADATA", r"^Requires-Dist:.*\n", ""),
        ("WHEEL", r"^Tag:.*", "Tag: py3-none-any"),
    ):
        for path in folder.glob(f"*.dist-info/{name}"):
            text = path.read_text(encoding="utf-8")
            corrected = re.sub(line, replacement, text, flags=re.MULTILINE)
            path.write_text(corrected, encoding="utf-8")


if __name__ == "__main__":
    main()
