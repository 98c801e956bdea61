"""OrthP, KernOrth and OrthConv: their mathematics against loops over taps, and what the methods do with it."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small import BATCH, CATALOG, WORKLOADS, assert_equivariant, few_digits, network, prune
from torch import nn

from pruneaudit.method.task import RetrainingTask
from pruneaudit.pruning import shapes
from pruneaudit.pruning.orthogonality import (
    convolution_penalty,
    convolutional_orthogonality,
    isometric,
    kernel_orthogonality,
    kernel_penalty,
)
from pruneaudit.pruning.removal import shrink
from pruneaudit.streams import generator

METHODS = ["l1-orthp", "l1-kernorth", "l1-orthconv", "kernorth-l1", "orthconv-l1"]


def weights(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=torch.float64)


def naive_kernel(weight):
    """‖W Wᵀ - I‖, or ‖Wᵀ W - I‖ of a tall matrix, entry by entry."""
    rows = weight.reshape(len(weight), -1)
    rows = rows if len(rows) <= rows.shape[1] else rows.T
    total = 0.0
    for i in range(len(rows)):
        for j in range(len(rows)):
            total = total + ((rows[i] * rows[j]).sum() - int(i == j)) ** 2
    return total**0.5


def overlap(weight, i, j, down, right):
    """Product of filter i with filter j that lies `down` and `right` of it, tap by tap."""
    _, inputs, height, width = weight.shape
    return sum(
        weight[i, channel, y, x] * weight[j, channel, y - down, x - right]
        for channel in range(inputs)
        for y in range(height)
        for x in range(width)
        if 0 <= y - down < height and 0 <= x - right < width
    )


def naive_convolutional(weight, stride):
    """Two placements of filters on the input, any multiple of the stride apart, must be orthonormal."""
    _, _, height, width = weight.shape
    total = 0.0
    for i in range(len(weight)):
        for j in range(len(weight)):
            for down in range(-height * stride, height * stride + 1, stride):
                for right in range(-width * stride, width * stride + 1, stride):
                    same = i == j and down == right == 0
                    total = total + (overlap(weight, i, j, down, right) - int(same)) ** 2
    return total**0.5


# Mathematics


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.sampled_from([(), (1, 1), (3, 3)]))
def test_kernel_orthogonality_by_entries(layers, filters, inputs, size):
    stack = weights(layers, filters, inputs, *size).requires_grad_()
    found, expected = kernel_orthogonality(stack), sum(naive_kernel(weight) for weight in stack)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    for one, other in zip(torch.autograd.grad(found, stack), torch.autograd.grad(expected, stack), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 2, 1, 1, 1), (2, 3, 2, 3, 3), (1, 2, 3, 2, 2), (1, 2, 1, 4, 4), (2, 3, 1, 2, 3)])
def test_convolutional_orthogonality_by_overlaps(shape, stride):
    stack = weights(*shape).requires_grad_()
    found = convolutional_orthogonality(stack, (stride, stride))
    expected = sum(naive_convolutional(weight, stride) for weight in stack)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    for one, other in zip(torch.autograd.grad(found, stack), torch.autograd.grad(expected, stack), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (3, 0), (5, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_penalty_is_that_of_the_convolution_as_a_matrix(kernel, padding, stride):
    """Rows of the matrix that are met away from the borders: zero penalty if and only if they are orthonormal."""
    weight = weights(2, 2, kernel, kernel) / kernel
    side = 6 * kernel
    unit = torch.eye(2 * side * side, dtype=torch.float64).view(-1, 2, side, side)
    matrix = F.conv2d(unit, weight, stride=stride, padding=padding).permute(1, 2, 3, 0)
    middle = matrix.shape[1] // 2
    reach = (kernel - 1) // stride
    around = matrix[:, middle - reach : middle + reach + 1, middle - reach : middle + reach + 1].flatten(0, 2)
    gram = matrix[:, middle, middle] @ around.T
    target = torch.zeros_like(gram).view(2, 2, 2 * reach + 1, 2 * reach + 1)
    target[:, :, reach, reach] = torch.eye(2)
    expected = (gram - target.flatten(1)).norm()
    found = convolutional_orthogonality(weight[None], (stride, stride))
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)


def own_taps(weight, stride, padding):
    return F.conv2d(weight, weight, stride=stride, padding=padding)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (2, 2), (1, 1), (1, 2)])
def test_the_centre_tap_is_the_gram_matrix(kernel, stride):
    """A penalty that differs from its centre's by exactly the other taps has the gram matrix in the centre."""
    weight = weights(3, 4, kernel, kernel)
    gram = weight.flatten(1) @ weight.flatten(1).T
    taps = own_taps(weight, stride, (kernel - 1) // stride * stride)
    centre = taps.shape[-1] // 2
    torch.testing.assert_close(taps[:, :, centre, centre], gram)
    others = taps.square().sum() - gram.square().sum()
    found = convolutional_orthogonality(weight[None], (stride, stride))
    expected = (kernel_orthogonality(weight[None]).square() + others).sqrt()
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)


def test_the_published_stride_and_padding_never_meet_the_centre():
    """Stride 2 and padding 1, whatever the layer's: what TPP's OrthConv baseline does to 3×3 layers of stride 1."""
    weight = weights(4, 3, 3, 3)
    gram = weight.flatten(1) @ weight.flatten(1).T
    taps = own_taps(weight, stride=2, padding=1)
    assert taps.shape[2:] == (2, 2)
    placements = [(down, right) for down in (-1, 1) for right in (-1, 1)]
    for number, (down, right) in enumerate(placements):
        tap = taps.flatten(2)[:, :, number]
        expected = [[float(overlap(weight, i, j, down, right)) for j in range(4)] for i in range(4)]
        torch.testing.assert_close(tap, torch.tensor(expected, dtype=torch.float64))
        assert not torch.allclose(tap, gram)
    # So an orthogonal convolution is told to change, whichever of its taps is asked to be I.
    delta = delta_orthogonal(3, 3)
    for number in range(4):
        target = torch.zeros(3, 3, 4, dtype=torch.float64)
        target[:, :, number] = torch.eye(3)
        assert (own_taps(delta, 2, 1).flatten(2) - target).norm() == pytest.approx(math.sqrt(3))


def delta_orthogonal(filters, inputs, kernel=3, seed=0):
    """An orthogonal convolution: orthonormal rows in the centre tap, zero elsewhere."""
    basis = torch.linalg.qr(weights(inputs, inputs, seed=seed))[0][:filters]
    weight = torch.zeros(filters, inputs, kernel, kernel, dtype=torch.float64)
    weight[:, :, kernel // 2, kernel // 2] = basis
    return weight


@pytest.mark.parametrize("stride", [1, 2])
def test_an_orthogonal_convolution_is_left_alone(stride):
    stack = torch.stack([delta_orthogonal(2, 4, seed=seed) for seed in range(3)]).requires_grad_()
    assert convolutional_orthogonality(stack, (stride, stride)).item() < 1e-12
    exact = torch.zeros(1, 2, 2, 3, 3, dtype=torch.float64)
    exact[0, :, :, 1, 1] = torch.eye(2)
    exact.requires_grad_()
    for penalty in (kernel_orthogonality(exact), convolutional_orthogonality(exact, (stride, stride))):
        (gradient,) = torch.autograd.grad(penalty, exact)
        assert penalty.item() == 0 and not gradient.any(), "no NaN where the norm is zero"


def test_a_kernel_may_be_orthogonal_and_its_convolution_not():
    """Two filters, each a shift of the other: the point of Wang et al. A stride of 2 parts them again."""
    weight = torch.zeros(1, 2, 1, 3, 3, dtype=torch.float64)
    weight[0, 0, 0, 0, 0] = weight[0, 1, 0, 0, 1] = 1
    assert kernel_orthogonality(weight).item() == 0
    assert convolutional_orthogonality(weight, (1, 1)).item() == pytest.approx(math.sqrt(2))
    assert convolutional_orthogonality(weight, (2, 2)).item() == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from([(), (3, 3)]), st.floats(0.5, 2))
def test_isometric_is_gram_schmidt(filters, inputs, size, gain):
    weight = weights(filters, inputs, *size)
    found = isometric(weight, gain)
    assert found.shape == weight.shape
    rows, before = (tensor.flatten(1).numpy() for tensor in (found, weight))
    if rows.shape[0] >= rows.shape[1]:
        rows, before = rows.T, before.T
    np.testing.assert_allclose(rows @ rows.T, gain**2 * np.eye(len(rows)), atol=1e-12)
    # One filter after the other: what earlier ones have not said yet.
    basis = []
    for row in before:
        rest = row - sum(((row @ known) * known for known in basis), np.zeros_like(row))
        basis.append(rest / np.linalg.norm(rest))
    np.testing.assert_allclose(rows, gain * np.array(basis), atol=1e-8)


def test_isometric_of_dependent_filters_has_full_rank():
    weight = torch.ones(3, 5, dtype=torch.float64)
    found = isometric(weight, 1.0)
    torch.testing.assert_close(found @ found.T, torch.eye(3, dtype=torch.float64))


# Methods


@pytest.mark.parametrize("name", ["resnet20", "lenet5"])
@pytest.mark.parametrize("method", METHODS[:3])
def test_filters_are_those_of_l1(method, name):
    assert prune(method, name).answer.kept == prune("l1", name).answer.kept


@pytest.mark.parametrize("name", ["resnet20", "lenet5"])
@pytest.mark.parametrize("method", ["l1-orthp", "l1-kernorth", "l1-orthconv", "kernorth-l1", "orthconv-l1"])
def test_selection_does_not_depend_on_the_order_of_filters(method, name):
    assert_equivariant(method, name, steps=2 if method in ("kernorth-l1", "orthconv-l1") else 0)


@pytest.mark.parametrize("name", ["resnet20", "lenet5"])
def test_orthp_makes_the_pruned_network_orthogonal(name):
    model = network(name)
    found = prune("l1-orthp", name, model)
    assert found.consumption.training_samples == found.consumption.optimiser_steps == 0
    example = shapes.example(WORKLOADS[name]).double()
    small = shrink(found.model, found.answer.kept, example)
    plain = shrink(model, found.answer.kept, example)
    for label, tensor in small.state_dict().items():
        before = plain.state_dict()[label]
        module = small.get_submodule(label.rpartition(".")[0])
        if label.endswith(".weight") and isinstance(module, nn.Conv2d | nn.Linear):
            rows = tensor.flatten(1) if len(tensor) <= tensor[0].numel() else tensor.flatten(1).T
            torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(len(rows), dtype=torch.float64))
            torch.testing.assert_close(tensor, isometric(before, math.sqrt(2)))
        else:
            assert torch.equal(tensor, before), f"{label} stays"


def naive_penalty(method, model):
    """0.1 times the loss of a network, layer by layer."""
    modules = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    if "kernorth" in method:
        return 0.1 * sum(kernel_orthogonality(module.weight[None]) for module in modules)
    total = 0.0
    for module in modules[1:]:
        if module.weight.dim() == 2 or module.weight.shape[2:] == (1, 1):
            total = total + kernel_orthogonality(module.weight[None])
        else:
            taps = own_taps(
                module.weight, module.stride, (module.kernel_size[0] - 1) // module.stride[0] * module.stride[0]
            )
            target = torch.zeros_like(taps)
            for index in range(len(taps)):
                target[index, index, taps.shape[2] // 2, taps.shape[3] // 2] = 1
            total = total + (taps - target).norm()
    return 0.1 * total


@pytest.mark.parametrize("name", ["resnet20", "lenet5"])
@pytest.mark.parametrize("method", ["l1-kernorth", "l1-orthconv"])
def test_the_penalty_of_retraining_covers_the_pruned_network(method, name):
    kept = prune(method, name).answer.kept
    small = shrink(network(name), kept, shapes.example(WORKLOADS[name]).double())
    instance = CATALOG.method(method).create()
    assert instance.in_retraining
    hooks = instance.retraining(RetrainingTask(small, WORKLOADS[name], 0.5, 10, {}))
    assert hooks.gradients is None and hooks.after_step is None
    parameters = [module.weight for module in small.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    found = hooks.penalty(0)
    expected = naive_penalty(method, small)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    ours = torch.autograd.grad(found, parameters, allow_unused=True)
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one is None:
            assert other is None and method == "l1-orthconv" and index == 0, "the first convolution only"
        else:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        parameters[-1].mul_(2)
    assert hooks.penalty(1).item() == pytest.approx(naive_penalty(method, small).item(), rel=1e-12), "of every step"


def test_one_by_one_convolutions_count_as_matrices():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 1, stride=2), nn.Linear(6, 2)).double()
    expected = sum(naive_kernel(module.weight.detach()) for module in model[1:])
    assert convolution_penalty(model, 1.0)(0).item() == pytest.approx(float(expected), rel=1e-10)
    expected = sum(naive_kernel(module.weight.detach()) for module in model)
    assert kernel_penalty(model, 1.0)(0).item() == pytest.approx(float(expected), rel=1e-10)


def test_layers_of_one_shape_keep_their_own_stride():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, stride=2)).double()
    expected = naive_convolutional(model[1].weight.detach(), 1) + naive_convolutional(model[2].weight.detach(), 2)
    assert convolution_penalty(model, 1.0)(0).item() == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("name", ["resnet20", "lenet5"])
@pytest.mark.parametrize("method", ["kernorth-l1", "orthconv-l1"])
def test_regularised_training_equals_a_naive_loop(method, name):
    model = network(name)
    plain = copy.deepcopy(model)
    found = prune(method, name, model, steps=5)
    assert found.consumption.optimiser_steps == 5
    dataset, recipe = few_digits(name), WORKLOADS[name].prune
    optimiser = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    plain.train()
    batches = [batch for epoch in range(2) for batch in dataset.batches(0, "prune", epoch, BATCH, torch.float64)]
    for images, labels in batches[:5]:
        loss = F.cross_entropy(plain(images), labels) + naive_penalty(method, plain)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for one, other in zip(found.model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    trained = prune("l1", name, plain)
    assert found.answer.kept == trained.answer.kept, "chosen after the training"


@pytest.mark.parametrize("method", ["kernorth-l1", "orthconv-l1"])
def test_the_training_is_that_of_the_paper(method):
    instance = CATALOG.method(method).create()
    assert instance.budget(CATALOG.workload("resnet56-cifar10")).steps == 50_000
    digits = CATALOG.workload("resnet20-digits")
    assert instance.budget(digits).steps == round(digits.prune.steps * 50 / 110)
    assert instance.budget(digits.scaled("smoke")).steps >= 1


@pytest.mark.parametrize("method", ["kernorth-l1", "orthconv-l1"])
def test_training_makes_layers_more_orthogonal(method):
    model = network("lenet5")
    before = naive_penalty(method, model).item()
    after = naive_penalty(method, prune(method, "lenet5", model, steps=20, lr="0:1e-2").model).item()
    assert after < before
