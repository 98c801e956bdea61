"""Networks that were judged leave the ledger: as weights with their widths, as a program, or for ONNX."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pruneaudit.campaign.cost import workload_of
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import ConfigError, MethodError, one_line
from pruneaudit.ledger.records import RunRecord
from pruneaudit.ledger.store import Ledger
from pruneaudit.pruning import shapes
from pruneaudit.pruning.removal import narrowed, units_named
from pruneaudit.workloads.models.tensors import state_of, take


def export(ledger: Ledger, catalog: Catalog, run: str, to: Path) -> None:
    """Write the network that a run left, with where it comes from and its widths.

    ``.safetensors``: weights by the names of the dense network; the widths are in the metadata. ``.pt2``: a program of
    ``torch.export``, which needs no code of the network; they are in its extra file ``pruneaudit.json``. ``.onnx``:
    they are in the model's metadata. Programs take batches of any size, in float32.

    Args:
        ledger: Where the run is.
        catalog: Where its workload is found.
        run: Its id, or how it begins.
        to: The file; its ending is the format.

    Raises:
        ConfigError: There is no such run or format, or the network does not go into it; nothing is written.
    """
    writer = _WRITERS.get(to.suffix)
    if writer is None:
        raise ConfigError(f"--to {to}: expected a file that ends in {', '.join(_WRITERS)}")
    if not to.parent.is_dir():
        raise ConfigError(f"--to {to}: no such folder; create {to.parent}")
    record = _record(ledger, run)
    workload = workload_of(record, catalog)
    widths = _widths(ledger, record)
    network = network_of(ledger, catalog, record)
    facts = {
        "run": record.run_id,
        "workload": record.workload,
        "model": record.model,
        "widths": json.dumps(widths),
        "mean": json.dumps(record.data.mean),
        "std": json.dumps(record.data.std),
    }
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        # Never half-written.
        part = Path(folder) / to.name
        try:
            writer(network.eval(), shapes.example(workload), facts, part)
        except ImportError as error:
            raise ConfigError(f'--to {to}: {error}; install "pruneaudit[onnx]"') from None
        except Exception as error:
            raise ConfigError(f"--to {to}: {record.model} does not go into this format: {one_line(error)}") from error
        os.replace(part, to)


def network_of(ledger: Ledger, catalog: Catalog, record: RunRecord) -> nn.Module:
    """The network that a run left.

    Raises:
        DamagedError: Its weights do not have the digest of the record.
    """
    network = shapes.network(workload_of(record, catalog), _widths(ledger, record))
    # Masks are in the weights: what they remove is zero.
    take(network, {name: tensor for name, tensor in ledger.weights(record).items() if not name.startswith("mask:")})
    return network


def load_pruned(path: Path | str, network: nn.Module, example: torch.Tensor) -> nn.Module:
    """The network that an exported ``.safetensors`` holds, for whoever has the code of the dense one.

    Layers may differ in width, which no configuration of a library's network says: widths come from the file.

    Args:
        path: What :func:`export` wrote.
        network: A dense network of the same architecture; its weights do not matter. It is cut in place.
        example: One input, ``[1, C, H, W]`` of images, ``[1, T]`` whole numbers of texts.

    Returns:
        The same network, with the widths and the weights of the file, in eval mode.

    Raises:
        ConfigError: There is no such file, or it is of another network.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read: {one_line(error)}") from None
    if "widths" not in facts:
        raise ConfigError(
            f"{path} does not say its widths: write it with `pruneaudit export RUN --to FILE.safetensors`"
        )
    widths: dict[str, int] = json.loads(facts["widths"])
    try:
        narrowed(network, widths, units_named(network, example, tuple(widths)))
        take(network, tensors)
    except (AttributeError, MethodError, RuntimeError) as error:
        raise ConfigError(f"{path} is a {facts.get('model')}, and no network as given: {one_line(error)}") from None
    return network.eval()


def _record(ledger: Ledger, run: str) -> RunRecord:
    """The run whose id begins so.

    Raises:
        ConfigError: There is none, or more than one.
    """
    found = [record for record in ledger.runs() if record.run_id.startswith(run)]
    if len(found) != 1:
        many = "no run" if not found else f"{len(found)} runs"
        raise ConfigError(f"ledger {ledger.root}: {many} with an id that begins with '{run}'; see `pruneaudit runs`")
    return found[0]


def _widths(ledger: Ledger, record: RunRecord) -> dict[str, int]:
    """Channels of each unit that a run's network has; empty: dense."""
    if record.stage == "scratch" and record.shape_of is None:
        return dict(record.widths)
    kept = ledger.get(record.shape_of).kept if record.shape_of is not None else record.kept
    return {name: len(indices) for name, indices in kept.items()}


def _save_weights(network: nn.Module, example: torch.Tensor, facts: dict[str, str], path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in state_of(network).items()}
    save_file(tensors, path, metadata={"format": "pt", **facts})


def _program(network: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    # Of one image the batch would become a constant.
    images = example.expand(2, *example.shape[1:]).contiguous()
    return torch.export.export(network, (images,), dynamic_shapes=({0: batch},))


def _save_program(network: nn.Module, example: torch.Tensor, facts: dict[str, str], path: Path) -> None:
    torch.export.save(_program(network, example), path, extra_files={"pruneaudit.json": json.dumps(facts)})


def _save_onnx(network: nn.Module, example: torch.Tensor, facts: dict[str, str], path: Path) -> None:
    import onnx

    with warnings.catch_warnings():
        # About the exporter's own dependencies.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(_program(network, example), dynamo=True, verbose=False)
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, path)


_WRITERS: dict[str, Callable[[nn.Module, torch.Tensor, dict[str, str], Path], None]] = {
    ".safetensors": _save_weights,
    ".pt2": _save_program,
    ".onnx": _save_onnx,
}
