"""Small networks on a few images, in float64, and what every method must do on them."""

import copy
import dataclasses
import functools

import torch
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.method import conduct
from pruneaudit.method.answers import decide
from pruneaudit.pruning import shapes
from pruneaudit.pruning.graph import loses_inputs
from pruneaudit.pruning.layers import prunable_layers
from pruneaudit.streams import generator
from pruneaudit.training.metering import Meter
from pruneaudit.workloads.data import Part, load
from pruneaudit.workloads.models.initialise import initialise

torch.set_num_threads(1)

CATALOG = Catalog()
#: Workload by name of its network: one with normalisations and residual blocks, one with biases and neither.
WORKLOADS = {"resnet20": CATALOG.workload("resnet20-digits"), "lenet5": CATALOG.workload("lenet5-digits")}
BATCH = 16


def few_digits(name, train=40, held_out=5):
    """The network's dataset with its first images only."""
    full = load(WORKLOADS[name].data)

    def first(part, count):
        return Part(part.images[:count], part.labels[:count])

    return dataclasses.replace(
        full,
        train=first(full.train, train),
        validation=first(full.validation, held_out),
        test=first(full.test, held_out),
    )


def network(name, seed=0):
    """A float64 network with random weights, biases and normalisations (scales, shifts, statistics)."""
    return copy.deepcopy(_network(name, seed))


@functools.lru_cache(maxsize=8)
def _network(name, seed):
    model = shapes.dense_network(WORKLOADS[name]).double()
    draw = generator(seed, "test")
    initialise(model, draw)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=draw)
                module.bias.uniform_(-1, 1, generator=draw)
                module.running_mean.uniform_(-0.5, 0.5, generator=draw)
                module.running_var.uniform_(0.5, 2, generator=draw)
            elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.uniform_(-1, 1, generator=draw)
    return model


@dataclasses.dataclass
class Pruned:
    """What came out: the task, what was decided, what the meter counted, and the network as the method left it."""

    task: object
    answer: object
    consumption: object
    model: nn.Module


def prune(method, name, model=None, ratio=0.5, steps=0, seed=0, lr="0:1e-3", workload=None, initial=None, **recipe):
    """Let a method (an instance, or the id of one) prune a float64 network of `name`."""
    method = CATALOG.method(method).create() if isinstance(method, str) else method
    method.name = method.name or "sample"
    model = network(name) if model is None else copy.deepcopy(model)
    workload = workload or WORKLOADS[name]
    changes = {"steps": steps, "lr": lr, "batch": BATCH, **recipe}
    job = conduct.Job(
        inherit=lambda: model,
        workload=workload,
        dataset=few_digits(name),
        prunable=workload.prunable,
        skip=workload.skip,
        ratio=ratio,
        recipe=workload.prune.model_copy(update=changes),
        seed=seed,
        precision="fp64",
        initial=initial or (lambda epoch: network(name, seed=100 + epoch).state_dict()),
    )
    layers = conduct.layers_of(model, job, method)
    with Meter(model) as meter:
        task = conduct.task_of(method, model, layers, job, meter)
        answer = decide(method, task)
    return Pruned(task, answer, meter.consumption, model)


def permuted(name, model, seed=0):
    """The same function with the filters of every prunable layer in another order: the network, and the orders.

    Filter j of a layer in the new network is filter ``orders[layer][j]`` of the old one.
    """
    model = copy.deepcopy(model)
    workload = WORKLOADS[name]
    layers = prunable_layers(model, shapes.example(workload), workload.prunable, workload.skip)
    orders = {layer.name: torch.randperm(layer.channels, generator=generator(seed, layer.name)) for layer in layers}
    with torch.no_grad():
        for layer in layers:
            order = orders[layer.name]
            for owner in (layer.module, layer.norm):
                if owner is not None:
                    for tensor in (*owner.parameters(), *owner.buffers()):
                        if tensor.dim():
                            tensor.copy_(tensor[order].clone())
            for item in layer.group:
                if loses_inputs(item.dep):
                    weight = item.dep.target.module.weight
                    weight.copy_(weight[:, order].clone())
    return model, orders


def in_new_order(name, model, answer, orders):
    """What an answer must become when the filters are put in other orders: (kept, masks)."""
    kept = {
        layer: [place for place, old in enumerate(orders[layer].tolist()) if old in set(stays)]
        for layer, stays in answer.kept.items()
    }
    workload = WORKLOADS[name]
    layers = prunable_layers(model, shapes.example(workload), workload.prunable, workload.skip)
    names = {module: layer for layer, module in model.named_modules()}
    masks = {layer: mask.clone() for layer, mask in answer.masks.items()}
    for layer in layers:
        if layer.name in masks:
            masks[layer.name] = masks[layer.name][orders[layer.name]]
        for item in layer.group:
            consumer = names.get(item.dep.target.module)
            if loses_inputs(item.dep) and consumer in masks:
                masks[consumer] = masks[consumer][:, orders[layer.name]]
    return kept, masks


def assert_equivariant(method, name, seed=0, **options):
    """The filters (weights) that stay do not depend on the order in which filters are stored."""
    model = network(name, seed)
    before = prune(method, name, model, **options)
    other, orders = permuted(name, model, seed)
    images = torch.randn(3, *shapes.example(WORKLOADS[name]).shape[1:], dtype=torch.float64)
    torch.testing.assert_close(other.eval()(images), model.eval()(images), rtol=1e-9, atol=1e-9)
    after = prune(method, name, other, **options)
    kept, masks = in_new_order(name, model, before.answer, orders)
    assert after.answer.kept == kept
    assert after.answer.masks.keys() == masks.keys()
    assert all(torch.equal(after.answer.masks[layer], mask) for layer, mask in masks.items())
