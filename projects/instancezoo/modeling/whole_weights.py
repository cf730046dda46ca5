"""The refusal of weights that leave a part of a model random, also with Detectron2's own loader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from instancezoo.checkpoint.display import show_names
from instancezoo.checkpoint.mismatch import compare_tensors
from instancezoo.checkpoint.reader import CheckpointError


class WholeWeights(nn.Module):
    """A model that, in evaluation mode, loads all of its tensors or raises `CheckpointError`.

    Detectron2's `DetectionCheckpointer` drops tensors of another shape, such as a head for another
    number of classes, and warns. A training starts from that; predictions would be random. As in
    Detectron2, weights of a backbone alone are loaded, and tensors of another model are ignored.

    Attributes:
        allow_partial: MODEL.WEIGHTS_ALLOW_PARTIAL; if True, nothing is refused.
    """

    allow_partial: bool = False

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # torch calls it for the whole model first: a refusal leaves all tensors as they were.
        if not self.training and not self.allow_partial:
            start = len(prefix)
            state = {n[start:]: value for n, value in state_dict.items() if n.startswith(prefix)}
            self._check_whole(state)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_whole(self, state: Mapping[str, Tensor]) -> None:
        wanted = self.state_dict()
        mismatch = compare_tensors(wanted, state)
        only_backbone = all(name.startswith("backbone.") for name in state)
        if not mismatch.missing or only_backbone:
            return
        cause = "They may be for another number of classes"
        if mismatch.methods:
            theirs, ours = map(show_names, mismatch.methods)
            cause = f"They are of another method: they have {theirs}; the model has {ours}"
        raise CheckpointError(
            f"the weights do not fill {type(self).__name__}: {len(mismatch.missing)} of its "
            f"{len(wanted)} tensors are missing or have another shape: "
            f"{show_names(mismatch.missing)}. {cause}. Use the config of their training: "
            "OUTPUT_DIR/config.yaml, or instancezoo.model_zoo.get_trained_config(FILE); or load "
            "only what fits: MODEL.WEIGHTS_ALLOW_PARTIAL True"
        )
