"""Our config with Detectron2's own class of nodes and with the keys of other extensions."""

import importlib.util
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import detectron2.projects
import pytest
import yaml
from detectron2.config import CfgNode, LazyConfig
from detectron2.config import get_cfg as get_stock_cfg
from detectron2.engine import default_setup
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.point_rend import add_pointrend_config
from fvcore.common.config import CfgNode as FvcoreNode
from yacs.config import CfgNode as YacsNode

import instancezoo.config
from instancezoo import get_cfg, model_zoo
from instancezoo.config import add_instancezoo_config
from instancezoo.testing import get_tiny_config, list_tiny_configs

TINY = "solo/solo_tiny"
FILE = "MODEL:\n  MINE:\n    WIDTH: 7\n    INNER:\n      RATE: 0.25\n"


def _load_panoptic_deeplab_config():
    """The function of this project's `config.py`; the project itself needs `panopticapi`."""
    name = "detectron2.projects.panoptic_deeplab"
    folder = Path(detectron2.projects.__path__[0]) / "panoptic_deeplab"
    module = ModuleType(name)
    module.__path__ = [str(folder)]
    spec = importlib.util.spec_from_file_location(f"{name}.config", folder / "config.py")
    config = importlib.util.module_from_spec(spec)
    previous = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(config)
    finally:
        del sys.modules[name]
        if previous is not None:
            sys.modules[name] = previous
    return config.add_panoptic_deeplab_config


def _add_own_keys(node):
    """Keys as an extension adds them, its nodes being made by `node`."""

    def add_config(cfg):
        cfg.MODEL.MINE = node(cfg)
        cfg.MODEL.MINE.WIDTH = 3
        cfg.MODEL.MINE.INNER = node(cfg)
        cfg.MODEL.MINE.INNER.RATE = 0.5

    return add_config


NODES = {
    "detectron2": lambda cfg: CfgNode(),
    "instancezoo": lambda cfg: instancezoo.config.CfgNode(),
    "fvcore": lambda cfg: FvcoreNode(),
    "yacs": lambda cfg: YacsNode(),
    "of the config": lambda cfg: type(cfg)(),
}
EXTENSIONS = {
    "point_rend": add_pointrend_config,
    "deeplab": add_deeplab_config,
    "panoptic_deeplab": _load_panoptic_deeplab_config(),
}


@pytest.fixture(params=NODES)
def own_keys(request):
    return _add_own_keys(NODES[request.param])


def _list_values(cfg):
    return yaml.safe_load(cfg.dump())


def _check_own_keys(cfg, tmp_path):
    node = cfg.MODEL.MINE
    cfg.merge_from_list(["MODEL.MINE.INNER.RATE", 0.75, "MODEL.MINE.WIDTH", 5])
    assert (node.INNER.RATE, node.WIDTH) == (0.75, 5)
    file = tmp_path / "mine.yaml"
    file.write_text(FILE)
    cfg.merge_from_file(str(file))
    cfg.merge_from_other_cfg(cfg.clone())
    assert node is cfg.MODEL.MINE and (node.INNER.RATE, node.WIDTH) == (0.25, 7)


def test_a_users_nodes_merge(own_keys, tmp_path):
    cfg = get_cfg()
    own_keys(cfg)
    _check_own_keys(cfg, tmp_path)


@pytest.mark.parametrize("node", ["detectron2", "instancezoo", "of the config"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_stock_config_takes_our_keys(node, is_first, tmp_path):
    cfg, add_config = get_stock_cfg(), _add_own_keys(NODES[node])
    for add in [add_config, add_instancezoo_config][:: 1 if is_first else -1]:
        add(cfg)
    assert type(cfg) is CfgNode
    _check_own_keys(cfg, tmp_path)
    add_config(wanted := get_cfg())
    wanted.merge_from_other_cfg(cfg)
    assert _list_values(cfg) == _list_values(wanted)


def test_a_stock_config_merges_a_dumped_config(tmp_path):
    wanted = get_tiny_config(TINY)
    (tmp_path / "config.yaml").write_text(wanted.dump())
    cfg = get_stock_cfg()
    add_instancezoo_config(cfg)
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    assert _list_values(cfg) == _list_values(wanted)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_keys_of_another_extension_stay_and_merge(extension):
    add_config = EXTENSIONS[extension]
    mixed = [get_cfg(), get_stock_cfg(), get_stock_cfg()]
    add_config(mixed[0])
    add_config(mixed[1])
    add_instancezoo_config(mixed[1])
    add_instancezoo_config(mixed[2])
    add_config(mixed[2])
    for cfg in mixed:
        cfg.merge_from_list(["SOLVER.MAX_ITER", 5])
        for other in mixed:
            cfg.clone().merge_from_other_cfg(other)  # all have the same keys
    mixed[0].merge_from_file(model_zoo.get_config_file(TINY))
    assert mixed[0].MODEL.META_ARCHITECTURE == "SOLO" and mixed[0].MODEL.SOLO.NUM_CLASSES == 4


def test_a_model_is_built_with_the_keys_of_others():
    cfg = get_tiny_config(TINY)
    add_pointrend_config(cfg)
    build_model(cfg)


def test_an_old_config_file_is_upgraded_beside_keys_of_others(tmp_path):
    cfg = get_cfg()
    _add_own_keys(NODES["detectron2"])(cfg)
    file = tmp_path / "old.yaml"
    file.write_text("VERSION: 1\nMODEL:\n  MINE:\n    WIDTH: 7\n  ROI_HEADS:\n    NMS: 0.25\n")
    cfg.merge_from_file(str(file))
    assert cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST == 0.25 and cfg.MODEL.MINE.WIDTH == 7


def test_copies_pickles_and_frozen_configs(own_keys):
    cfg = get_cfg()
    own_keys(cfg)
    cfg.merge_from_list(["SOLVER.MAX_ITER", 7])
    cfg.freeze()
    for copied in (cfg.clone(), pickle.loads(pickle.dumps(cfg))):
        assert copied.is_frozen() and type(copied) is type(cfg)
        assert _list_values(copied) == _list_values(cfg)
        assert copied.was_set("SOLVER.MAX_ITER") and not copied.was_set("SOLVER.BASE_LR")
        copied.defrost()
        copied.merge_from_list(["MODEL.MINE.WIDTH", 9])
    assert cfg.MODEL.MINE.WIDTH == 3


def test_detectron2s_own_ways_to_write_and_read(tmp_path):
    cfg = get_tiny_config(TINY, ["OUTPUT_DIR", str(tmp_path)])
    default_setup(cfg, SimpleNamespace(config_file="", eval_only=True))
    with open(tmp_path / "config.yaml") as file:
        loaded = CfgNode.load_cfg(file)
    assert _list_values(loaded) == _list_values(cfg)
    assert type(loaded) is CfgNode and build_model(loaded)
    LazyConfig.save(LazyConfig.load(_write_lazy(tmp_path)), str(tmp_path / "lazy.yaml"))


def _write_lazy(folder):
    (folder / "lazy.py").write_text("model = dict(width=3)\n")
    return str(folder / "lazy.py")


@pytest.mark.parametrize(
    "name", [n for n in model_zoo.list_configs() if n.endswith(("_tiny", "_nuclei"))]
)
def test_small_recipes_state_their_number_of_classes(name):
    cfg = model_zoo.get_config(name)
    number = 1 if name.endswith("_nuclei") else 4
    assert number == cfg.DATASETS.NUM_CLASSES
    groups = {key: node for key, node in cfg.MODEL.items() if isinstance(node, dict)}
    heads = {key: node.NUM_CLASSES for key, node in groups.items() if "NUM_CLASSES" in node}
    assert set(heads) > {"SEM_SEG_HEAD", "ROI_HEADS"}
    assert {value for key, value in heads.items() if key != "SEM_SEG_HEAD"} == {number}


def test_a_head_that_is_set_itself_keeps_its_number(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("DATASETS:\n  NUM_CLASSES: 6\nMODEL:\n  FCOS:\n    NUM_CLASSES: 2\n")
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.SOLO.NUM_CLASSES", 3])
    cfg.merge_from_file(str(file))
    model = cfg.MODEL
    numbers = model.SOLO.NUM_CLASSES, model.FCOS.NUM_CLASSES, model.ROI_HEADS.NUM_CLASSES
    assert numbers == (3, 2, 6)
    # A later file of other data replaces the number, a merge about other things does not.
    cfg.merge_from_list(["DATASETS.NUM_CLASSES", 9])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 9
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 8
    cfg.merge_from_list(["SOLVER.MAX_ITER", 9])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 8


@pytest.mark.parametrize("name", list_tiny_configs())
def test_a_number_assigned_by_hand_is_read_back(name):
    cfg = model_zoo.get_config(name)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    read = get_cfg()
    read.merge_from_other_cfg(CfgNode(_list_values(cfg)))
    assert read.MODEL.ROI_HEADS.NUM_CLASSES == 2 and read.MODEL.SOLO.NUM_CLASSES == 4
