"""One optimisation step: precision, and the reaction to a loss that is not finite."""

from __future__ import annotations

import time
from typing import Any, cast

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from instancezoo.errors import ConfigError, ZooError, check_choice

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def find_precision(cfg: Any) -> torch.dtype | None:
    """Find autocast's type by SOLVER.AMP; None for single precision. Raises `ConfigError`."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    check_choice("SOLVER.AMP.DTYPE", cfg.SOLVER.AMP.DTYPE, PRECISIONS)
    return PRECISIONS[cfg.SOLVER.AMP.DTYPE]


class NonFiniteLossError(ZooError, FloatingPointError):
    """A loss became NaN or infinite.

    Args:
        losses: value of each loss.
        image_ids: ids of the images in this process's batch.
    """

    def __init__(self, losses: dict[str, float], image_ids: list[Any]) -> None:
        self.losses = losses
        self.image_ids = image_ids
        bad = ", ".join(f"{name} = {value}" for name, value in losses.items())
        super().__init__(f"loss is not finite ({bad}); images {image_ids}")


class OtherOptimizerError(ConfigError):
    """The state of an optimizer is of another kind, or of other parameters."""


class StepTrainer(SimpleTrainer):
    """Detectron2's `SimpleTrainer` with autocast on any device and a guarded step.

    Args:
        model, data_loader, optimizer: as in `SimpleTrainer`.
        precision: type that autocast computes in, or None for single precision.
        device_type: type of the model's device, "cpu", "cuda", ...
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        precision: torch.dtype | None = None,
        device_type: str = "cpu",
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.precision = precision
        self.device_type = device_type
        # Only float16 has too few exponent bits for gradients without scaling.
        self.grad_scaler = torch.amp.GradScaler(device_type, enabled=precision == torch.float16)

    def run_step(self) -> None:
        """Forward, backward, update. Raises `NonFiniteLossError` before weights change."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        statistics = _running_statistics(self.model)
        before = [tensor.clone() for tensor in statistics]
        with torch.autocast(
            self.device_type, dtype=self.precision, enabled=self.precision is not None
        ):
            losses = self._compute_losses(batch)
        total = cast(Tensor, sum(losses.values()))
        if not _is_finite_everywhere(total):
            for tensor, saved in zip(statistics, before, strict=True):
                tensor.copy_(saved)
            values = {name: float(loss.detach()) for name, loss in losses.items()}
            raise NonFiniteLossError(values, [image.get("image_id") for image in batch])
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _compute_losses(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        try:
            return self.model(batch)
        except FloatingPointError:
            # Detectron2's proposals find NaN before there is a loss. Reported as a loss, it stops
            # all processes: an error here would leave the others waiting for this one.
            device = next(self.model.parameters()).device
            return {"predictions": torch.tensor(float("nan"), device=device)}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the optimizer. Raises `OtherOptimizerError` if the state is that of another."""
        try:
            super().load_state_dict(state_dict)
        except (KeyError, ValueError) as error:  # other settings; other parameters
            raise OtherOptimizerError(str(error)) from error
        wanted = self.optimizer.defaults.keys()
        if any(wanted - group.keys() for group in self.optimizer.param_groups):
            raise OtherOptimizerError("other settings")
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _running_statistics(model: nn.Module) -> list[Tensor]:
    # The forward pass of a bad batch would leave NaN in them.
    return [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training
        for buffer in module.buffers(recurse=False)
    ]


def _is_finite_everywhere(total: Tensor) -> bool:
    finite = torch.isfinite(total.detach()).to(torch.int32)
    if comm.get_world_size() > 1:
        # all processes stop together; one that continued alone would wait for ever
        torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN)
    return bool(finite)
