"""Checks of learning rate, batch size and length of training."""

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
    """The rate against the batch size."""
    solver = context.cfg.SOLVER
    rate, batch = solver.BASE_LR, solver.IMS_PER_BATCH
    clipped = solver.CLIP_GRADIENTS.ENABLED
    if solver.get("OPTIMIZER", "SGD") == "SGD":
        usual = SGD_RATE_PER_IMAGE * batch
    else:
        usual = ADAMW_MAX_RATE
    ratio = rate / usual
    message = (
        f"{solver.get('OPTIMIZER', 'SGD')}, BASE_LR {rate:g} at {batch} images a batch is "
        f"{ratio:.2g} times {usual:g}, "
    ) + ("the linear rule's" if usual != ADAMW_MAX_RATE else "the usual upper limit")
    remedy = f"set SOLVER.BASE_LR {usual:g}"
    if ratio > 4 and not clipped:
        yield error(message, f"{remedy}, or turn on SOLVER.CLIP_GRADIENTS")
    elif ratio > 2:
        yield warning(message, remedy)
    elif ratio < 1 / 20:
        yield warning(f"{message}: training will be slow", remedy)
    else:
        yield ok(message)


@register_check("steps")
def check_steps(context: Context) -> Iterator[Finding]:
    """Drops of the rate, warm-up and evaluation inside the training's length."""
    solver = context.cfg.SOLVER
    late = [step for step in solver.STEPS if step >= solver.MAX_ITER]
    is_stepwise = solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR"
    if late and is_stepwise:
        yield warning(
            f"{len(late)} of {len(solver.STEPS)} SOLVER.STEPS {tuple(solver.STEPS)} are not before "
            f"MAX_ITER {solver.MAX_ITER}: the rate never drops there",
            f"set SOLVER.STEPS ({int(solver.MAX_ITER * 0.75)}, {int(solver.MAX_ITER * 0.92)})",
        )
    if list(solver.STEPS) != sorted(solver.STEPS) and is_stepwise:
        yield error(f"SOLVER.STEPS {tuple(solver.STEPS)} do not increase", "sort them")
    if solver.WARMUP_ITERS >= solver.MAX_ITER:
        yield warning(
            f"WARMUP_ITERS {solver.WARMUP_ITERS} is not under MAX_ITER {solver.MAX_ITER}: "
            "the full rate is never reached",
            f"set SOLVER.WARMUP_ITERS {max(1, solver.MAX_ITER // 20)}",
        )
    elif not late:
        yield ok(f"{len(solver.STEPS)} drops and the warm-up lie within {solver.MAX_ITER}")


@register_check("epochs")
def check_epochs(context: Context) -> Iterator[Finding]:
    """How often each image is seen."""
    solver, num_images = context.cfg.SOLVER, context.num_train_images
    if not num_images:
        return
    batch = solver.IMS_PER_BATCH
    epochs = solver.MAX_ITER * batch / num_images
    message = f"{solver.MAX_ITER} iterations of {batch} see each of {num_images} images "
    message += f"{epochs:.3g} times"
    if epochs < FEW_EPOCHS:
        needed = FEW_EPOCHS * num_images // batch + 1
        yield warning(message, f"set SOLVER.MAX_ITER to {needed} or more, STEPS with it")
    elif epochs > MANY_EPOCHS:
        enough = max(1, MANY_EPOCHS * num_images // batch)
        yield warning(
            message, f"set SOLVER.MAX_ITER to {enough} or less, STEPS with it: it will overfit"
        )
    else:
        yield ok(message)
    if batch > num_images:
        yield warning(
            f"a batch of {batch} holds some of the {num_images} images twice",
            f"set SOLVER.IMS_PER_BATCH {num_images} or less",
        )


@register_check("batch")
def check_batch_division(context: Context) -> Iterator[Finding]:
    """The batch must divide among the processes."""
    batch, num_gpus = context.cfg.SOLVER.IMS_PER_BATCH, context.num_gpus
    if batch % num_gpus:
        nearest = max(num_gpus, round(batch / num_gpus) * num_gpus)
        yield error(
            f"IMS_PER_BATCH {batch} does not divide among {num_gpus} GPUs",
            f"set SOLVER.IMS_PER_BATCH {nearest}",
        )
