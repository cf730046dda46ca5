"""Inference under Detectron2's and fvcore's tools: traces, operation counts, gradients."""

import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.utils.analysis import FlopCountAnalysis

from instancezoo.methods import METHODS
from instancezoo.testing import (
    build_seeded_model,
    get_tiny_config,
    keep_everything,
    list_tiny_configs,
    make_image,
)

TINY = list_tiny_configs()
STOCK_HEADS = [
    *("mask_rcnn/mask_rcnn_tiny", "cascade_mask_rcnn/cascade_mask_rcnn_tiny", "htc/htc_tiny"),
    *("panet/panet_tiny", "panet/panet_legacy_tiny"),
]
PROTOTYPES = ["yolact/yolact_tiny", "yolact/yolact_plus_tiny"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module", params=TINY)
def model(request):
    few = [word for method in METHODS for word in (method.detection_limit, 8)]
    cfg = keep_everything(get_tiny_config(request.param, few))
    return build_seeded_model(cfg).eval()


def _trace(model, image):
    adapter = TracingAdapter(model, [{"image": image}])
    with torch.no_grad():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    return lambda other: adapter.outputs_schema(traced(other))[0]["instances"]


def _list_tensors(instances):
    fields = instances.get_fields()
    return {name: getattr(value, "tensor", value) for name, value in fields.items()}


def test_operations_are_counted(model):
    flops = FlopCountAnalysis(model, [{"image": make_image(64, 64)}])
    counts = flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_module()
    assert counts["model.backbone"] > 10**6 and flops.total() > counts["model.backbone"]


def test_a_trace_gives_what_the_model_gives(model):
    image = make_image(64, 64)
    found = _list_tensors(_trace(model, image)(image))
    with torch.no_grad():
        wanted = _list_tensors(model([{"image": image}])[0]["instances"])
    assert found.keys() == wanted.keys() and len(found["scores"]) > 0
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", STOCK_HEADS)
def test_a_trace_of_two_stages_finds_other_numbers_of_objects(name):
    # No limit on the detections: NMS decides their number.
    few = ["MODEL.RPN.POST_NMS_TOPK_TEST", 8, "TEST.DETECTIONS_PER_IMAGE", 1000]
    model = build_seeded_model(get_tiny_config(name, few)).eval()
    predictors = model.roi_heads.box_predictor
    for predictor in predictors if isinstance(predictors, torch.nn.ModuleList) else [predictors]:
        predictor.cls_score.weight.data.mul_(40)  # some scores above the threshold, others below
    _check_other_images(model)


@pytest.mark.parametrize("name", PROTOTYPES)
def test_a_trace_with_prototypes_finds_other_numbers_of_objects(name):
    limits = [word for method in METHODS for word in (method.detection_limit, 1000)]
    _check_other_images(build_seeded_model(keep_everything(get_tiny_config(name, limits))).eval())


def _check_other_images(model):
    run = _trace(model, make_image(64, 64))
    counts = set()
    for seed in range(4):
        image = make_image(64, 64, seed)
        found = _list_tensors(run(image))
        with torch.no_grad():
            wanted = _list_tensors(model([{"image": image}])[0]["instances"])
        for field, value in wanted.items():
            assert torch.equal(found[field], value), (seed, field)
        counts.add(len(found["scores"]))
    assert len(counts) > 1


def test_gradients_of_scores_reach_the_image(model):
    image = make_image(64, 64).float().requires_grad_()
    (output,) = model([{"image": image, "height": 80, "width": 72}])
    fields = _list_tensors(output["instances"])
    smooth = [v for name, v in fields.items() if name in ("scores", "pred_polygons")]
    sum(value.sum() for value in smooth).backward()
    assert image.grad.isfinite().all() and (image.grad != 0).any()


def test_gradients_do_not_change_the_outputs(model):
    image = make_image(64, 64)
    (output,) = model([{"image": image}])
    with torch.no_grad():
        (wanted,) = model([{"image": image}])
    wanted = _list_tensors(wanted["instances"])
    for name, value in _list_tensors(output["instances"]).items():
        assert torch.equal(value, wanted[name]), name
