"""The plain reference: what the training scripts of the source papers do.

A DataLoader with PIL transforms, contiguous layout, fp32, for-loop SGD, ``.item()`` at every step, one model at a time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from pruneaudit.errors import DataMissingError
from pruneaudit.streams import generator
from pruneaudit.workloads.data import Dataset, Part, data_root, facts, load
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import Workload

#: Mean accuracies of equally good loops, in percent, are this close at least, or within three standard errors.
CLOSE = 0.5


def train(model: nn.Module, data: Dataset, recipe: Recipe, seed: int, side: int | None = None) -> float:
    """Train a network, with a test pass after every epoch.

    Args:
        model: The network, in contiguous layout; trained in place.
        data: Its dataset.
        recipe: How to train.
        seed: Of data order and augmentation.
        side: Pixels to which every image is resized whenever it is asked for; None: as they are.

    Returns:
        Test accuracy in percent after the last epoch.
    """
    torch.manual_seed(seed)
    images, optimiser = loader(data, data.train, recipe.batch, side), sgd(model, recipe)
    steps, step, accuracy = recipe.total_steps(len(images)), 0, math.nan
    for epoch in range(math.ceil(steps / len(images))):
        model.train()
        for batch, labels in images:
            if step == steps:
                break
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(epoch, step)
            plain_step(model, optimiser, batch, labels)
            step += 1
        accuracy = test(model, loader(data, data.test, 512, side))
    return accuracy


def plain_step(model: nn.Module, optimiser: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One step in fp32; loss and accuracy are read at each, as papers' progress meters do."""
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    _ = loss.item(), (logits.argmax(1) == labels).float().mean().item()


@torch.no_grad()
def test(model: nn.Module, images: DataLoader[tuple[torch.Tensor, torch.Tensor]], device: str = "cpu") -> float:
    """Accuracy in percent."""
    model.eval()
    hits = seen = 0
    for batch, labels in images:
        hits += (model(batch.to(device)).argmax(1) == labels.to(device)).sum().item()
        seen += len(labels)
    return 100.0 * hits / seen


def sgd(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """An optimiser that goes through the weights one by one."""
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.rate(0, 0),
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        foreach=False,
    )


def loader(
    data: Dataset, part: Part, batch: int, side: int | None = None
) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of a split: the training images shuffled and augmented, others as they are."""
    return DataLoader(Pictures(data, part, side), batch, shuffle=part is data.train)


class Pictures(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """A split as torchvision gives it: PIL images, transformed one by one whenever they are asked for."""

    def __init__(self, data: Dataset, part: Part, side: int | None = None) -> None:
        config, is_training = data.config, part is data.train
        steps = [transforms.Resize((side, side))] if side else []
        steps += [transforms.RandomCrop(side or data.height, padding=config.pad)] if config.pad and is_training else []
        steps += [transforms.RandomHorizontalFlip()] if config.flip and is_training else []
        self.transform = transforms.Compose(
            [*steps, transforms.ToTensor(), transforms.Normalize(config.mean, config.std)]
        )
        # PIL knows a grey image by its missing axis.
        pixels = part.images.squeeze(-1) if data.channels == 1 else part.images
        self.images, self.labels = pixels.cpu().numpy(), part.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[number])), self.labels[number]


def is_as_good(mine: Sequence[float], plain: Sequence[float]) -> bool:
    """Whether accuracies over seeds, in percent, differ from the reference's by no more than noise, see CLOSE."""
    error = math.sqrt(statistics.variance(mine) / len(mine) + statistics.variance(plain) / len(plain))
    return abs(statistics.fmean(mine) - statistics.fmean(plain)) <= max(3 * error, CLOSE)


def images_of(workload: Workload) -> Dataset:
    """A workload's dataset; where it is not there, random images in its sizes, which it says."""
    try:
        return load(workload.data, data_root(None))
    except DataMissingError as error:
        print(f"{error}\n{workload.name}: random images instead; accuracies mean nothing")
    sizes, draw = facts(workload.data), generator(0, "benchmark")

    def part(count: int) -> Part:
        shape = (count, sizes.height, sizes.height, sizes.channels)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
        return Part(images, torch.randint(0, sizes.classes, (count,), generator=draw))

    parts = (part(count) for count in (sizes.train, sizes.validation, sizes.test))
    return Dataset(workload.data, sizes.classes, *parts, split_digest="random")
