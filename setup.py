"""The parts that pyproject.toml cannot express: the extension, and the configs in the wheel.

The extension `instancezoo._C` is skipped if it cannot be built: without PyTorch (an isolated
build), without a C++ compiler or without Python's headers. The package works without it, slower.
CUDA kernels are built on machines with a GPU and nvcc; `FORCE_CUDA=1` builds them without a GPU,
`FORCE_CUDA=0` skips them, for example if nvcc does not match PyTorch.
"""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "projects" / "instancezoo" / "layers" / "csrc"


class BuildWithConfigs(build_py):
    """Copies configs/ into the built package, where `model_zoo` looks first."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "instancezoo" / "configs"
            shutil.copytree(ROOT / "configs", target, dirs_exist_ok=True)


def plan_extension() -> dict[str, Any]:
    """Return the arguments of `setup` for the extension; none if a requirement is missing."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    compiler = os.environ.get("CXX", "c++").split()[0]
    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        missing = f"PyTorch ({error}; pip needs --no-build-isolation)"
    else:
        missing = "" if header.exists() else f"{header} (Python's development package)"
        missing = missing if shutil.which(compiler) else f"a C++ compiler ({compiler})"
    if missing:
        print(f"instancezoo._C is skipped, plain PyTorch replaces it. Missing: {missing}")
        return {}

    from torch.cuda import is_available

    wanted = is_available() and cpp_extension.CUDA_HOME is not None
    with_cuda = os.environ.get("FORCE_CUDA", str(int(wanted))) == "1"
    make_extension = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    folder = SOURCES.relative_to(ROOT)
    sources = [path for path in folder.rglob("*") if path.suffix in {".cpp", ".cu"}]
    extension = make_extension(
        "instancezoo._C",
        sorted(str(path) for path in sources if with_cuda or path.suffix != ".cu"),
        # Without contraction, sums of products are rounded alike on all processors.
        extra_compile_args={"cxx": ["-O3", "-g0", "-ffp-contract=off"], "nvcc": ["-O3"]},
        depends=sorted(str(path) for path in folder.rglob("*.h")),
        py_limited_api=True,  # one binary for all versions of Python
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": cpp_extension.BuildExtension},
    }


extension = plan_extension()

setup(
    ext_modules=extension.get("ext_modules", []),
    cmdclass={"build_py": BuildWithConfigs, **extension.get("cmdclass", {})},
)
