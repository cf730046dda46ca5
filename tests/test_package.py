"""The package's structure: arrows point down, nothing is registered in vain, nothing leaks."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import instancezoo
from instancezoo import model_zoo

PACKAGE = Path(instancezoo.__file__).parent
# What stands on a lower floor must not import what stands on a higher one.
FLOORS = {
    "errors": 0,
    "progress": 0,
    "files": 0,
    "cli.quiet": 0,
    "layers": 1,
    "data": 2,
    "checkpoint": 2,
    "modeling": 2,
    "evaluation": 2,
    "engine": 3,
    "inference": 3,
    # methods: 4
    "config": 5,
    "model_zoo": 6,
    "testing": 7,
    "doctor": 7,
    "benchmark": 8,
    "cli": 9,
}
METHOD_FLOOR = 4
# A method may import another only along its lineage.
LINEAGE = {
    "solov2": {"solo"},
    "pointrend": {"solov2", "solo"},  # refines SOLOv2's masks
    "blendmask": {"fcos"},
    "centermask": {"fcos"},
}


def _part(module: str) -> str:
    """`instancezoo.layers.rle` -> `layers`."""
    return (module.split(".") + [""])[1]


def _imports(file: Path) -> set[str]:
    own = ["instancezoo", *file.relative_to(PACKAGE).with_suffix("").parts]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(own[: -node.level] if node.level else [])
            module = ".".join(filter(None, [base, node.module or ""]))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "instancezoo" and "." in name}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_imports_point_down(file):
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    mine = parts[0]
    if mine == "__init__":
        return
    floor = FLOORS.get(mine, METHOD_FLOOR)
    for module in _imports(file):
        other = _part(module)
        if other == mine or not (PACKAGE / other).exists() | (PACKAGE / f"{other}.py").exists():
            continue
        if mine not in FLOORS and other not in FLOORS:
            assert other in LINEAGE.get(mine, set()), f"{mine} imports {module}, no kin of it"
        else:
            assert FLOORS.get(other, METHOD_FLOOR) <= floor, f"{mine} imports {module}"


def test_no_import_circles():
    graph: dict[str, set[str]] = {}
    for file in FILES:
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(["instancezoo", *parts]).removesuffix(".__init__")
        graph[name] = _imports(file)
    names = set(graph)
    graph = {name: {m for m in graph[name] if m in names and m != name} for name in names}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for module in sorted(graph[name]):
                visit(module, (*path, name))
            done.add(name)

    for name in sorted(names):
        visit(name, ())


# Torch and Detectron2 are loaded once; each part is then imported first in a process of its own.
_IMPORT_EACH = """
import importlib, os, sys
import torch, detectron2.engine, detectron2.evaluation, detectron2.modeling
failed = []
for part in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(part)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        failed.append(part)
sys.exit(f"do not import on their own: {failed}" if failed else 0)
"""


def _run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_no_part_needs_another_to_be_imported_before_it():
    names = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES}
    parts = sorted(f"instancezoo.{name}" for name in names - {"__init__"})
    run = _run_python(_IMPORT_EACH, *parts)
    assert run.returncode == 0, run.stderr


def _registered_names() -> set[str]:
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        PROPOSAL_GENERATOR_REGISTRY,
    )
    from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY

    from instancezoo.pointrend import POINT_HEAD_REGISTRY

    registries = (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        PROPOSAL_GENERATOR_REGISTRY,
        ROI_HEADS_REGISTRY,
        ROI_MASK_HEAD_REGISTRY,
        POINT_HEAD_REGISTRY,
    )
    return {
        name
        for registry in registries
        for name, item in registry
        if item.__module__.startswith("instancezoo.")
    }


def test_every_registered_class_is_reachable_from_a_shipped_config():
    texts = [model_zoo.get_config(name).dump() for name in model_zoo.list_configs()]
    unreachable = {name for name in _registered_names() if not any(name in t for t in texts)}
    assert not unreachable


def test_importing_the_top_package_is_cheap():
    code = "import sys, instancezoo; sys.exit('torch' in sys.modules)"
    assert _run_python(code).returncode == 0
