"""Checks of the learning rate, the batch size and the length of training."""

from __future__ import annotations

from collections.abc import Iterator

from .context import Context
from .findings import Finding, error, ok, register_check, warning

# Linear scaling rule (Goyal et al. 2017) from Detectron2's schedules: 0.02 for 16 images.
SGD_RATE_PER_IMAGE = 0.02 / 16
ADAMW_MAX_RATE = 1e-3
FEW_EPOCHS, MANY_EPOCHS = 5, 300


@register_check("learning rate")
def check_learning_rate(context: Context) -> Iterator[Finding]:
    """Learning rate against the batch size."""
    solver = context.cfg.SOLVER
    rate, batch = solver.BASE_LR, solver.IMS_PER_BATCH
    usual, source = SGD_RATE_PER_IMAGE * batch, "the rate of the linear scaling rule"
    if solver.OPTIMIZER != "SGD":
        usual, source = ADAMW_MAX_RATE, "the usual upper limit"
    ratio = rate / usual
    message = (
        f"{solver.OPTIMIZER}, SOLVER.BASE_LR {rate:g} with batches of {batch} images is "
        f"{ratio:.3g} times {usual:g}, {source}"
    )
    remedy = f"set SOLVER.BASE_LR {usual:g}"
    if ratio > 4 and not solver.CLIP_GRADIENTS.ENABLED:
        yield error(message, f"{remedy}, or set SOLVER.CLIP_GRADIENTS.ENABLED True")
    elif ratio > 2:
        yield warning(message, remedy)
    elif ratio < 1 / 20:
        yield warning(f"{message}: training will be slow", remedy)
    else:
        yield ok(message)


@register_check("steps")
def check_steps(context: Context) -> Iterator[Finding]:
    """Drops of the learning rate and warm-up within the length of training."""
    solver = context.cfg.SOLVER
    steps, length = tuple(solver.STEPS), solver.MAX_ITER
    late = [step for step in steps if step >= length]
    is_stepwise = solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR"
    if late and is_stepwise:
        yield warning(
            f"{len(late)} of {len(steps)} SOLVER.STEPS {steps} are not under SOLVER.MAX_ITER "
            f"{length}: the learning rate does not drop there",
            f"set SOLVER.STEPS ({int(length * 0.75)}, {int(length * 0.92)})",
        )
    if list(steps) != sorted(steps) and is_stepwise:
        yield error(
            f"SOLVER.STEPS {steps} do not ascend", f"set SOLVER.STEPS {tuple(sorted(steps))}"
        )
    if (warmup := solver.WARMUP_ITERS) >= length:
        yield warning(
            f"SOLVER.WARMUP_ITERS {warmup} is not under SOLVER.MAX_ITER {length}: "
            "the full learning rate is never reached",
            f"set SOLVER.WARMUP_ITERS {max(1, length // 20)}",
        )
    elif not late:
        yield ok(f"{len(steps)} drops and the warm-up are within {length} iterations")


@register_check("epochs")
def check_epochs(context: Context) -> Iterator[Finding]:
    """Number of times that training sees each image."""
    solver, num_images = context.cfg.SOLVER, context.num_train_images
    if not num_images:
        return
    batch = solver.IMS_PER_BATCH
    epochs = solver.MAX_ITER * batch / num_images
    message = (
        f"{solver.MAX_ITER} iterations with batches of {batch} see each of {num_images} images "
        f"{epochs:.3g} times"
    )
    if epochs < FEW_EPOCHS:
        needed = FEW_EPOCHS * num_images // batch + 1
        yield warning(message, f"set SOLVER.MAX_ITER to {needed} or more, and SOLVER.STEPS with it")
    elif epochs > MANY_EPOCHS:
        enough = max(1, MANY_EPOCHS * num_images // batch)
        yield warning(
            f"{message}: the model overfits",
            f"set SOLVER.MAX_ITER to {enough} or less, and SOLVER.STEPS with it",
        )
    else:
        yield ok(message)
    if batch > num_images:
        yield warning(
            f"a batch of {batch} holds some of the {num_images} images twice",
            f"set SOLVER.IMS_PER_BATCH to {num_images} or less",
        )


@register_check("batch")
def check_batch_division(context: Context) -> Iterator[Finding]:
    """Equal parts of the batch for all processes."""
    batch, num_gpus = context.cfg.SOLVER.IMS_PER_BATCH, context.num_gpus
    if batch % num_gpus:
        nearest = max(num_gpus, round(batch / num_gpus) * num_gpus)
        yield error(
            f"SOLVER.IMS_PER_BATCH {batch} is not a multiple of {num_gpus} GPUs",
            f"set SOLVER.IMS_PER_BATCH {nearest}",
        )
