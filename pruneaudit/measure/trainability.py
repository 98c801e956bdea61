"""Trainability of a pruned network: singular values of its Jacobian, and trainability accuracy.

Both say how well a network can be trained on, before its final accuracy is known. Importing this module imports no
torch: the audit needs its second half only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pruneaudit.errors import AuditError
from pruneaudit.ledger.records import Jacobian
from pruneaudit.workloads.recipes import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pruneaudit.workloads.data import Dataset

#: Images that a mean over singular values is taken over.
SAMPLES = 64
# Largest batch that is differentiated at once: bounds the memory, not the result.
_CHUNK = 64


def singular_values(model: nn.Module, images: torch.Tensor, batch_statistics: bool = False) -> torch.Tensor:
    """Singular values of d logits / d image, for every image by itself.

    The Jacobian of Wang & Fu 2023 (TPP, arXiv 2207.12534, sec. 4): logits, not probabilities, with respect to the
    normalised image. It belongs to one image in eval mode only, and there up to ties: where two pixels of a pooling
    window are equal, rounding, and so the batch, decides which one the gradient takes (5.9 % of the windows of LeNet-5
    on digits, 0.9 % of the largest entry). The authors' release measures in training mode: batch norm then takes the
    statistics of the batch, and a row holds the gradient of the whole batch's logits with respect to its image. The two
    modes may order networks the other way round: right after pruning, eval mode largely shows running statistics that
    belong to the dense network, while retraining runs on batch statistics.

    Modes, ``requires_grad``, gradients and running statistics of the model stay as they are. Forward hooks do run: the
    caller pauses those that count.

    Args:
        model: The network, ``[N, ...]`` to ``[N, C]``.
        images: Normalised images ``[N, ...]`` of D values each, in the type of the model.
        batch_statistics: Whether batch norm takes the batch's statistics, as in training, instead of the running ones.

    Returns:
        ``[N, min(C, D)]`` float64, falling. What rounding cannot tell from zero is zero; NaN throughout for an image
        whose Jacobian is not finite.
    """
    import torch

    # torch.no_grad of a caller would leave nothing to differentiate.
    with _frozen(model, batch_statistics), torch.enable_grad():
        inputs = images.detach().requires_grad_()
        logits = model(inputs)
        classes = logits.shape[1]
        rows = []
        for label in range(classes):
            # In eval mode images do not see each other: the gradient of the sum holds the gradient of every image.
            (row,) = torch.autograd.grad(logits[:, label].sum(), inputs, retain_graph=label < classes - 1)
            rows.append(row.flatten(1))
    matrix = torch.stack(rows, dim=1)
    rounding = torch.finfo(matrix.dtype).eps
    matrix = matrix.double()
    # The smaller of the two products has the same non-zero eigenvalues; the larger one only adds zeros.
    gram = matrix @ matrix.mT if matrix.shape[1] <= matrix.shape[2] else matrix.mT @ matrix
    finite = gram.isfinite().flatten(1).all(dim=1)[:, None]
    # The solver raises for a whole batch if one matrix of it is not finite.
    squares = torch.linalg.eigvalsh(gram.where(finite[..., None], 0.0)).flip(1).clamp(min=0)
    # Rounding of the model's arithmetic (relative to a singular value) and of the solver (to its square): without this
    # a rank-deficient network would have a condition number made of noise.
    size = squares.shape[1]
    noise = max((size * rounding) ** 2, size * torch.finfo(torch.float64).eps)
    squares = squares.where(squares > noise * squares[:, :1], 0.0)
    return squares.sqrt().where(finite, math.nan)


def jacobian(model: nn.Module, dataset: Dataset, samples: int = SAMPLES, batch_statistics: bool = False) -> Jacobian:
    """Statistics of the Jacobian's singular values over the first training images, the same ones in every run.

    Normalised, never augmented. The mean is the mean JSV of Wang & Fu 2023 (TPP, arXiv 2207.12534,
    sec. 4); it has no unit and scales with the normalisation of the images.

    Args:
        model: The network, on the device of the dataset.
        dataset: The workload's data.
        samples: Number of images; a smaller split gives all that it has.
        batch_statistics: See :func:`singular_values`.

    Returns:
        Mean and sample standard deviation (0 for a single value) over all singular values of all images, the mean
        condition number over images, and the number of images.

    Raises:
        AuditError: The Jacobian is not finite, or there is no image.
    """
    import torch

    dtype = next(model.parameters()).dtype
    chunks = first_images(dataset, dtype, samples)
    return summary(torch.cat([singular_values(model, images, batch_statistics) for images in chunks]))


def takes_batch_statistics(model: nn.Module) -> bool:
    """Whether a network computes otherwise on the statistics of a batch: whether it has batch norm."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in model.modules())


def first_images(dataset: Dataset, dtype: torch.dtype, samples: int = SAMPLES) -> Iterator[torch.Tensor]:
    """The images of :func:`jacobian`: the first training images, normalised, in chunks ``[N, C, H, W]``.

    Raises:
        AuditError: There is none.
    """
    first = dataset.train.first(samples)
    if not len(first):
        raise AuditError("the Jacobian needs at least one training image")
    for images, _ in dataset.inputs(first, dtype, _CHUNK):
        yield images


def summary(values: torch.Tensor) -> Jacobian:
    """Statistics of one network's singular values, as in :func:`jacobian`.

    Args:
        values: As :func:`singular_values` gives them, ``[N, values]``.

    Raises:
        AuditError: They are not finite.
    """
    values = values.cpu()
    # Finite values may still have a sum that is not.
    mean, std = float(values.mean()), float(values.std()) if values.numel() > 1 else 0.0
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise AuditError("the Jacobian is not finite")
    # A smallest singular value of zero makes this infinite (or, in a network without any signal, NaN).
    condition = float((values[:, 0] / values[:, -1]).mean())
    return Jacobian(mean=mean, std=std, condition=condition if math.isfinite(condition) else None, samples=len(values))


def trainability_accuracy(test_accuracy: Sequence[float], recipe: Recipe) -> float | None:
    """Mean test accuracy, or mean of another metric, over the epochs of the first learning-rate stage of a retraining.

    Wang et al. 2023 (arXiv 2301.05219), Eq. 1, which does not say accuracy on what; its Table 5 (88.00 beside a final
    test accuracy of 79.57) can hardly be on test images. Ours is on the test split. A constant
    learning rate is one stage: the whole training. Compare two of them only under :func:`comparable_trainability`.

    Args:
        test_accuracy: Test accuracy in percent after each epoch, in order; or what decides instead, in its unit.
        recipe: What the retraining was.

    Returns:
        Its mean; None for a smooth schedule (a cosine, say), which has no stages, for a recipe in steps, and for a
        curve that is shorter than the stage.
    """
    schedule = recipe.schedule
    if recipe.epochs is None or schedule.kind != "step":
        return None
    # A boundary beyond the last epoch is never reached.
    stage = min(schedule.first_stage or recipe.epochs, recipe.epochs)
    if len(test_accuracy) < stage:
        return None
    return math.fsum(test_accuracy[:stage]) / stage


def comparable_trainability(left: Recipe, right: Recipe) -> bool:
    """Whether the trainability accuracies of two retrainings may be compared: same length, same schedule.

    The schedule sets both the learning rate of the first stage and how many epochs are averaged: under different
    schedules the numbers rank the schedules, not the networks (Wang et al. 2023, arXiv 2301.05219, Eq. 1).
    """
    return _course(left) == _course(right)


def _course(recipe: Recipe) -> tuple[object, ...]:
    """Length and learning rates of a recipe, and whose rates they are."""
    return recipe.epochs, recipe.steps, recipe.lr, recipe.start, recipe.span, recipe.optimiser


@contextmanager
def _frozen(model: nn.Module, batch_statistics: bool) -> Iterator[None]:
    """Put the model in eval mode (but for batch norm) with nothing to train, and undo both, module by module."""
    from torch.nn.modules.batchnorm import _BatchNorm

    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and batch_statistics]
    running = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    try:
        model.eval()
        for norm in norms:
            norm.train()
        # Gradients of parameters would cost half as much again, and nobody asks for them.
        for parameter, _ in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
        for buffer, before in running:
            buffer.copy_(before)
