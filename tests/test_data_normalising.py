"""Large images are normalised in one pass: with the bits of torch's three."""

import pytest
import torch

from pruneaudit.workloads.data import dataset as dataset_module
from pruneaudit.workloads.data import imitation
from pruneaudit.workloads.schema import DataConfig

pytest.importorskip("llvmlite", reason='needs the extra "compiled"')
from pruneaudit.workloads.data import normalising

MEANS = {1: ((0.31,), (0.27,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
CIFAR10 = DataConfig(name="cifar10", pad=4, flip=True, validation=5000, mean=MEANS[3][0], std=MEANS[3][1])


def pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def in_three(images, mean, scale):
    return (images.to(mean.dtype) - mean) * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 64, 1), (3, 5, 67, 3), (1, 1, 22, 3), (2, 40, 224, 3)])
def test_one_pass_has_the_bits_of_three(shape, dtype):
    images = pixels(*shape)
    mean, std = (torch.tensor(values, dtype=dtype) for values in MEANS[shape[3]])
    found = normalising.normalised(images, mean * 255, 1 / (std * 255))
    assert found.dtype == dtype and torch.equal(found, in_three(images, mean * 255, 1 / (std * 255)))
    # Whatever lies between them in memory.
    mirrored = images.flip(2).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    found = normalising.normalised(mirrored, mean * 255, 1 / (std * 255))
    assert torch.equal(found, in_three(mirrored, mean * 255, 1 / (std * 255)))


@pytest.mark.parametrize(
    ("side", "dtype", "threads", "in_one"),
    [
        (128, torch.float32, 1, True),
        (128, torch.float64, 1, True),
        (128, torch.bfloat16, 1, False),
        (128, torch.float32, 8, False),
        (32, torch.float32, 1, False),
    ],
)
def test_a_dataset_normalises_large_images_so(side, dtype, threads, in_one, monkeypatch):
    """And gives the same whoever does it."""
    asked = []
    monkeypatch.setattr(
        dataset_module, "_compiled", lambda: lambda *given: asked.append(0) or normalising.normalised(*given)
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    dataset, images = imitation(CIFAR10, 20, 10), pixels(3, side, side, 3)
    found = dataset.normalise(images, dtype)
    mean, scale = dataset.scaling(dtype, images.device)
    assert torch.equal(found, in_three(images, mean, scale).permute(0, 3, 1, 2)) and bool(asked) == in_one
    assert found.is_contiguous(memory_format=torch.channels_last)
