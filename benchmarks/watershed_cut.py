"""What the cut of the deep watershed loses by itself, and what each network adds to the loss.

    python benchmarks/watershed_cut.py --config-file configs/watershed/watershed_tiny.yaml \
        [--weights model_best.pth] [--extra -1 0 1] [--dataset NAME=JSON:IMAGES ...] [KEY VALUE ...]

Mask AP of DATASETS.TEST with true classes and true energy levels, for several DILATE_EXTRA. With
weights also those of the model: "predicted" instead of "true" for the classes, the levels or both.
"""

import argparse
import dataclasses
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import Tensor

from instancezoo.checkpoint import ZooCheckpointer
from instancezoo.config import load_cfg
from instancezoo.data.mappers import build_mapper
from instancezoo.engine.loader import build_test_loader, make_validation_config
from instancezoo.evaluation import InstanceEvaluator
from instancezoo.modeling.object_maps import IGNORED
from instancezoo.modeling.objects import collect_ground_truth
from instancezoo.watershed.head import WatershedMaps
from instancezoo.watershed.semantics import GivenSemantics

TRUE, PREDICTED = "true", "predicted"


def find_maps(model: Any, record: dict[str, Any], classes_are: str, levels_are: str) -> Any:
    """The padded batch of one image, and its maps from true or predicted classes and levels."""
    images = model.preprocess([record])
    truth = collect_ground_truth([record], model.device, keep_crowds=True)
    targets = model.assign(None, images, truth)
    height, width = images.image_sizes[0]
    true_classes = targets.objects.classes[0, :height, :width]
    true_classes = true_classes.where(true_classes != IGNORED, model.num_classes)
    semantics: Any = GivenSemantics([true_classes], images, model.num_classes)
    if classes_are == PREDICTED:
        features = model.backbone(images.tensor)
        features = [features[name] for name in model.in_features]
        semantics = model.head.semantics(features, images, [record])
    classes = semantics.find_classes()
    num_levels = len(model.training_settings.edges)
    logits: Tensor = F.one_hot(targets.depths.levels, num_levels).permute(0, 3, 1, 2)
    if levels_are == PREDICTED:
        directions = model.head.find_directions(images.tensor, classes)
        logits = model.head.energy_net(directions, model.head.find_things(classes))
    return images, WatershedMaps(images.tensor, semantics, classes, None, logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", default="")
    parser.add_argument("--dataset", action="append", default=[])
    parser.add_argument("--extra", nargs="+", type=int, default=[-1, 0, 1])
    parser.add_argument("overrides", nargs="*", help="KEY VALUE ...")
    arguments = parser.parse_args()
    fixed = ["MODEL.MASK_OUTPUT", "rle", "MODEL.TIMM.WEIGHTS", ""]
    overrides = [*arguments.overrides, *fixed]
    cfg = load_cfg(arguments.config_file, overrides, arguments.dataset, training=False)
    model: Any = build_model(cfg).eval()
    if arguments.weights:
        ZooCheckpointer(model).load(arguments.weights)
    mapper: Any = build_mapper(make_validation_config(cfg), True)
    loader = build_test_loader(cfg, cfg.DATASETS.TEST, mapper, batch_size=1)
    sources = [TRUE, PREDICTED] if arguments.weights else [TRUE]
    variants = list(product(sources, sources, arguments.extra))
    evaluators = [InstanceEvaluator(cfg.DATASETS.TEST[0]) for _ in variants]
    cut = model.cut
    for batch in loader:
        for (classes, levels, extra), evaluator in zip(variants, evaluators, strict=True):
            with torch.no_grad():
                images, maps = find_maps(model, batch[0], classes, levels)
            model.cut = dataclasses.replace(cut, extra_growth=extra)
            (found,) = model.decode(maps, images)
            found = model.postprocess(found, batch[0]["height"], batch[0]["width"])
            evaluator.process(batch, [{"instances": found}])
    print("classes    levels     extra     AP   AP50   AP75")
    for (classes, levels, extra), evaluator in zip(variants, evaluators, strict=True):
        figures = evaluator.evaluate()["segm"]
        text = "  ".join(f"{figures[name]:5.1f}" for name in ("AP", "AP50", "AP75"))
        print(f"{classes:9}  {levels:9}  {extra:5}  {text}")


if __name__ == "__main__":
    main()
