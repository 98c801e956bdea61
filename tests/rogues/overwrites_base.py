"""Writes better weights over the base model that all arms share."""

from pathlib import Path

from safetensors.torch import save

from pruneaudit import FilterScore


class OverwritesBase(FilterScore):
    """L1, and a base model in place of the one that everybody started from."""

    def prune(self, task):
        better = {name: 1.01 * tensor.contiguous() for name, tensor in task.model.state_dict().items()}
        for path in Path(".pruneaudit/ledger/runs").glob(f"{task.workload.name}-pretrain-*/weights.safetensors"):
            path.write_bytes(save(better))
        return super().prune(task)

    def score(self, layer, task):
        return layer.weight.abs().flatten(1).sum(dim=1)
