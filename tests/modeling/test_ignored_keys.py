"""Keys that are read and change nothing: accepted values, and the refusal of others."""

import pytest
from detectron2.config import CfgNode

from instancezoo.errors import ConfigError
from instancezoo.modeling.ignored_keys import IgnoredKey, add_ignored_keys, check_ignored_keys

TABLE = {
    "ANYTHING": IgnoredKey(True),
    "NMS_TYPE": IgnoredKey("matrix", "no other NMS is offered"),
    "CHANNELS": IgnoredKey(0, "it follows MODEL.FPN.OUT_CHANNELS"),
    "STRIDES": IgnoredKey([], "it follows the levels"),
    "LOSS.USE_SIGMOID": IgnoredKey(True, "the loss has no other form"),
}
FOLLOWED = {"CHANNELS": 256, "STRIDES": [8, 16]}


@pytest.fixture
def node():
    node = CfgNode({"LOSS": CfgNode()})
    add_ignored_keys(node, TABLE)
    return node


def test_defaults_are_added_and_accepted(node):
    assert node.NMS_TYPE == "matrix" and node.LOSS.USE_SIGMOID is True
    check_ignored_keys("MODEL.X", node, TABLE, FOLLOWED)


def test_what_follows_from_other_keys_is_accepted(node):
    node.ANYTHING, node.CHANNELS, node.STRIDES = False, 256, [8, 16]
    check_ignored_keys("MODEL.X", node, TABLE, FOLLOWED)


@pytest.mark.parametrize(
    "key,value,only",
    [
        ("NMS_TYPE", "mask", "matrix"),
        ("CHANNELS", 128, "256"),
        ("STRIDES", [4, 8], r"\[8, 16\]"),
        ("LOSS.USE_SIGMOID", False, "True"),
    ],
)
def test_another_value_is_refused_with_its_key(node, key, value, only):
    node.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=rf"^MODEL\.X\.{key} .*{only}"):
        check_ignored_keys("MODEL.X", node, TABLE, FOLLOWED)
