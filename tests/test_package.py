"""The package's structure: arrows point down, nothing is registered in vain, nothing leaks."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest
from detectron2.config import CfgNode

import instancezoo
from instancezoo import get_cfg, model_zoo
from instancezoo.methods import METHODS
from instancezoo.pointrend import POINT_HEAD_REGISTRY

PACKAGE = Path(instancezoo.__file__).parent
# What stands on a lower floor must not import what stands on a higher one. A file of a folder may
# stand on another floor than the rest.
FLOORS = {
    "errors": 0,
    "progress": 0,
    "files": 0,
    "optional": 0,
    "cli.quiet": 0,
    "layers": 1,
    "data": 2,
    "checkpoint": 2,
    "modeling": 2,
    "evaluation": 2,
    "engine": 3,
    "inference": 3,
    "doctor": 3,
    "method": 3,
    # one folder a method: 4
    "methods": 5,
    **dict.fromkeys(
        ("config_keys", "config_values", "config_types", "config_limits", "config_trial"), 5
    ),
    "config": 6,
    "model_zoo": 7,
    "testing": 8,
    "doctor.diagnose": 9,
    "trial": 9,
    "benchmark": 9,
    "cli": 10,
}
METHOD_FLOOR = 4
# The two arrows up, followed at the first use (the reason stands there).
LAZY = {("checkpoint", "methods"), ("inference", "methods")}
# A method may import another only along its lineage.
LINEAGE = {
    "solov2": {"solo"},
    "pointrend": {"solov2", "solo", "htc"},  # refines the masks of SOLOv2 and HTC
    "htc": {"mask_rcnn"},  # the same thresholds and limits
    "blendmask": {"fcos"},
    "centermask": {"fcos"},
}
# Nothing here names a method: neither these nor the folders of `METHODS`.
FREE_OF_METHODS = (
    *("modeling", "layers", "data", "evaluation", "checkpoint", "engine", "inference"),
    *("testing", "doctor", "benchmark", "method", "config", "config_values", "model_zoo"),
    *("config_keys", "config_types", "config_limits", "config_trial", "trial"),
)
METHODS_TO_COME = (
    *("maskrcnn", "mask r-cnn", "cascade", "htc", "panet", "point_rend", "yolact", "blendmask"),
    *("condinst", "centermask", "ssap", "semiconv", "unet_boundary", "watershed", "sipmask"),
    *("metric_learning", "metriclearning", "model.metric"),
)


def _part(module: str) -> str:
    """`instancezoo.layers.rle` -> `layers`, `instancezoo.cli.quiet` -> `cli.quiet`."""
    names = module.split(".")[1:]
    dotted = ".".join(names[:2])
    return dotted if dotted in FLOORS else "".join(names[:1])


def _name_module(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(["instancezoo", *parts]).removesuffix(".__init__")


def _is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


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


def _lazy_imports(file: Path) -> set[str]:
    """Modules of this package whose names a file holds as text, as `import_module` takes them."""
    constants = (n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Constant))
    texts = {node.value for node in constants if isinstance(node.value, str)}
    return {text for text in texts if text.startswith("instancezoo.") and _is_module(text)}


FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({_part(_name_module(file)) for file in FILES} - set(FLOORS) - {""})


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_imports_point_down(file):
    mine = _part(_name_module(file))
    if not mine:
        return
    floor = FLOORS.get(mine, METHOD_FLOOR)
    for module in _imports(file) | _lazy_imports(file):
        other = _part(module)
        if other == mine or not _is_module(f"instancezoo.{other}"):
            continue
        if module in _lazy_imports(file) and (mine, other) in LAZY:
            continue
        if mine not in FLOORS and other not in FLOORS:
            assert other in LINEAGE.get(mine, set()), f"{mine} imports {module}, not of its lineage"
        else:
            assert FLOORS.get(other, METHOD_FLOOR) <= floor, f"{mine} imports {module}"


def _list_names(tree: ast.Module) -> Iterator[str]:
    """Identifiers, names of imports and texts of a file, but not its docstrings."""
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            first = node.body[0]
            docstrings.add(first.value if isinstance(first, ast.Expr) else None)
    for node in ast.walk(tree):
        values = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "module")]
        if isinstance(node, ast.Constant) and node not in docstrings:
            values.append(node.value)
        yield from (value for value in values if isinstance(value, str))


@pytest.mark.parametrize("part", FREE_OF_METHODS)
def test_no_method_is_named_below_the_methods(part):
    folders = [name for name in FOLDERS if name != "metric"]  # also an ordinary word
    names = re.compile("|".join([*folders, *METHODS_TO_COME]), re.IGNORECASE)
    for file in FILES:
        if file.relative_to(PACKAGE).with_suffix("").parts[0] == part:
            found = {n for n in _list_names(ast.parse(file.read_text())) if names.search(n)}
            assert not found, f"{file.relative_to(PACKAGE)}: {found}"


def test_no_import_circles():
    graph: dict[str, set[str]] = {}
    for file in FILES:
        graph[_name_module(file)] = _imports(file)
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


def test_converters_are_complete_whichever_module_is_imported_first():
    names = ("polar_mask.weight", "polar_reg.weight", "mask_convs.0.conv.weight")
    names = ["backbone.layer1.0.conv3.weight", *(f"bbox_head.{name}" for name in names)]
    code = (
        "import sys, torch\n"
        "from instancezoo.checkpoint import convert_state_dict\n"
        "state = {name: torch.ones(1) for name in sys.argv[1:]}\n"
        "print(convert_state_dict(state, allow_unknown=True).layout.config)"
    )
    run = _run_python(code, *names)
    assert run.stdout.strip() == "polarmask/polarmask_R_50_FPN_1x", run.stderr


def _registered_modules() -> dict[str, str]:
    """Name of each class and function of this package in a registry -> its module."""
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        PROPOSAL_GENERATOR_REGISTRY,
    )
    from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY

    registries = (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        PROPOSAL_GENERATOR_REGISTRY,
        ROI_HEADS_REGISTRY,
        ROI_MASK_HEAD_REGISTRY,
        POINT_HEAD_REGISTRY,
    )
    modules = {name: item.__module__ for registry in registries for name, item in registry}
    return {name: module for name, module in modules.items() if module.startswith("instancezoo.")}


def _list_texts(node: CfgNode) -> Iterator[str]:
    """Texts among a config's values; a key may have a registered name, too."""
    for value in node.values():
        if isinstance(value, CfgNode):
            yield from _list_texts(value)
        elif isinstance(value, str):
            yield value


def test_every_registered_class_is_reachable_from_a_shipped_config():
    configs = map(model_zoo.get_config, model_zoo.list_configs())
    assert set(_registered_modules()) <= {value for cfg in configs for value in _list_texts(cfg)}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_record_names_keys_that_exist_and_all_that_its_folder_registers(folder):
    record = import_module(f"instancezoo.{folder}").METHOD
    assert record in METHODS
    for key in (record.detection_limit, *record.candidate_limits, *record.score_keys):
        assert reduce(getattr, key.split("."), get_cfg()) is not None
    modules = _registered_modules()
    own = {name for name, module in modules.items() if _part(module) == folder}
    assert own - dict(POINT_HEAD_REGISTRY).keys() <= set(record.registry_names)


def test_the_readme_lists_all_names_in_detectron2s_registries():
    text = (PACKAGE.parent.parent / "README.md").read_text(encoding="utf-8")
    names = _registered_modules().keys() - dict(POINT_HEAD_REGISTRY).keys()  # which is ours
    assert [name for name in names if f"`{name}`" not in text] == []


def test_importing_the_top_package_is_cheap():
    code = "import sys, instancezoo; sys.exit('torch' in sys.modules)"
    assert _run_python(code).returncode == 0
