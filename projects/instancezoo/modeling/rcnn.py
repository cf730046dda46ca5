"""Detectron2's two-stage model with masks that stay compact up to the requested output."""

from __future__ import annotations

from typing import Any

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor

from instancezoo.modeling.adjustable import check_switches
from instancezoo.modeling.guards import is_without_images, move_images, tell_non_finite
from instancezoo.modeling.masks import BoxMasks, MaskForm, masks_for_output
from instancezoo.modeling.objects import leave_out_crowds
from instancezoo.modeling.whole_weights import WholeWeights


class BatchImages(ImageList):
    """The images of a batch, with the records that they come from.

    ROI heads get them as `images`, in training and in inference, so that they can read other fields
    of the batch, such as `sem_seg`, as the mapper leaves them (neither padded nor moved).

    Args:
        tensor: (N, C, H, W).
        image_sizes: height and width of each image without padding.
        records: N dicts in Detectron2's format.
    """

    def __init__(
        self, tensor: Tensor, image_sizes: list[tuple[int, int]], records: list[dict[str, Any]]
    ) -> None:
        super().__init__(tensor, image_sizes)
        self.records = records


@META_ARCH_REGISTRY.register()
class GeneralizedRCNNCompactMasks(WholeWeights, GeneralizedRCNN):
    """`GeneralizedRCNN` whose masks end as `BoxMasks`, and whose ROI heads see the whole batch.

    ROI heads may also return detections of the original images, whose size is then that of the
    `Instances`, with masks in any form. For test-time augmentation they then have two attributes:
    `resize_boxes`, (M, 4) boxes, height and width of an image before and after -> boxes; and
    `place_masks`, (M, h, w) scores and (M, 4) boxes -> mask form.

    Args:
        mask_output: "bitmask" (bool tensor, as Detectron2 gives) or "rle" (COCO RLE dicts).
        allow_partial: see `WholeWeights`.
        kwargs: those of `GeneralizedRCNN`.
    """

    keep_crowds = False  # crowds of INPUT.CROWDS are left out before training

    @configurable
    def __init__(
        self, *, mask_output: str = "bitmask", allow_partial: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.mask_output = mask_output
        self.allow_partial = allow_partial

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        check_switches(cfg)
        return {
            **super().from_config(cfg),
            "mask_output": cfg.MODEL.MASK_OUTPUT,
            "allow_partial": cfg.MODEL.WEIGHTS_ALLOW_PARTIAL,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As in `GeneralizedRCNN`. Raises `ZooError` for no image in training, NaN in inference."""
        if is_without_images(batched_inputs, self.training):
            return []
        if self.training:
            batched_inputs = leave_out_crowds(batched_inputs)
        return super().forward(batched_inputs)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> BatchImages:
        """Normalise and pad the images; the result goes to the ROI heads."""
        batched_inputs = move_images(batched_inputs, self.pixel_mean)
        images = super().preprocess_image(batched_inputs)
        return BatchImages(images.tensor, images.image_sizes, batched_inputs)

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[Any]:
        """As in `GeneralizedRCNN`; `pred_masks` has the form that `mask_output` names."""
        stages: list[Any] = [self.proposal_generator, self.roi_heads]
        parts: list[Any] = [self.backbone]
        parts += [part for stage in stages if stage for part in stage.children()]
        with tell_non_finite(batched_inputs, parts):
            results = super().inference(batched_inputs, detected_instances, do_postprocess=False)
        if not do_postprocess:
            return results
        return [
            {"instances": self._postprocess_image(result, image)}
            for result, image in zip(results, batched_inputs, strict=True)
        ]

    def _postprocess_image(self, result: Instances, image: dict[str, Any]) -> Instances:
        height = image.get("height", result.image_size[0])
        width = image.get("width", result.image_size[1])
        masks = result.pred_masks if result.has("pred_masks") else None
        is_placed = isinstance(masks, MaskForm)
        if masks is None:
            return detector_postprocess(result, height, width)
        # Under another name, Detectron2 selects the masks with the boxes and does not paste them.
        result.mask_form = masks if is_placed else masks[:, 0]  # (M, h, w)
        result.remove("pred_masks")
        output = detector_postprocess(result, height, width)
        form = output.mask_form
        masks = form if is_placed else BoxMasks(form, output.pred_boxes.tensor)
        output.remove("mask_form")
        output.pred_masks = masks_for_output(masks, height, width, self.mask_output)
        return output
