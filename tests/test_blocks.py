"""Whole blocks of transformers: removed, silenced, counted, chosen, and carried through a campaign."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plays import brought

from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Runtime, Stages
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.cost import macs
from pruneaudit.pruning import shapes
from pruneaudit.pruning.equivalence import trained_like
from pruneaudit.pruning.removal import masked, shrink
from pruneaudit.streams import generator
from pruneaudit.workloads.models import build
from pruneaudit.workloads.networks import Network

torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["vit", "llama"])
@given(gone=st.sets(st.integers(0, 3), max_size=3), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_the_stream_passes_a_removed_block_by(kind, gone, seed):
    """A block that is removed is one that adds nothing; what others compute stays, and so does the cache."""
    args = (("depth", 4), ("width", 16), ("heads", 4), ("hidden", 12))
    model = build(Network(model=kind, args=args), 1, 10).double().eval()
    trained_like(model, generator(seed, "weights"))
    one = torch.zeros(1, 1, 8, 8, dtype=torch.float64) if kind == "vit" else torch.zeros(1, 9, dtype=torch.int64)
    lead = "q_proj" if kind == "vit" else "k_proj"
    kept = {f"blocks.{number}.attn.{lead}": [] for number in gone}
    draw = generator(seed, "inputs")
    inputs = (
        torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=draw)
        if kind == "vit"
        else (torch.randint(10, (3, 9), generator=draw))
    )
    small, silent = shrink(model, kept, one), masked(model, kept, one)
    with torch.no_grad():
        outputs = model(inputs)
        torch.testing.assert_close(small(inputs), silent(inputs), rtol=0, atol=1e-10)
        if gone:
            assert (small(inputs) - outputs).abs().max() > 1e-6, "a block that is there does something"
    left = {name.split(".")[1] for name, _ in small.named_parameters() if name.startswith("blocks.")}
    assert left == {str(number) for number in range(4) if number not in gone}
    if kind == "llama":
        assert torch.equal(small.generate(inputs, 5), small.generate(inputs, 5, cache=False))


@pytest.mark.parametrize("name", ["vit-digits", "llama-shakespeare"])
def test_macs_of_fewer_blocks_are_those_of_the_network_that_is_left(name):
    workload = Catalog().workload(name)
    known = shapes.costs(workload)
    opening, other = known.blocks
    small = shapes.network(workload, {opening: 0})
    assert known.of_widths({opening: 0}) == macs(small, shapes.example(workload)) < known.of_widths({})
    # One of two always goes, however little is asked for, and that is as near as one block allows.
    asked = shapes.target(workload, 0.1, "block", "global")
    assert shapes.missed(asked, {opening: 0, other: known.filters[other]}, known) == ""
    assert "MACs are left" in shapes.missed(asked, {opening: 0, other: 0}, known)


def test_methods_of_blocks_say_where_there_are_none():
    catalog = Catalog()
    vit, resnet, lenet = (catalog.workload(name) for name in ("vit-digits", "resnet20-digits", "lenet5-digits"))
    short, chance, factors = (catalog.method(name).create() for name in ("shortgpt", "global-random-block", "sss"))
    assert short.skip(vit) is None and chance.skip(vit) is None and chance.skip(resnet) is None
    assert short.skip(resnet) == "resnet20 has no blocks of attention"
    assert chance.skip(lenet) == "lenet5 has no residual blocks" == factors.skip(lenet)
    # Its factor multiplies the one normalisation that a branch ends in.
    assert factors.skip(vit) == "no block of vit is one branch that ends in a normalisation"
    assert factors.skip(resnet) is None


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    ledger, catalog = Ledger(folder / "ledger"), brought(folder)
    executor = LocalExecutor(ledger, Stages(ledger, catalog, Runtime()), "session")
    return Campaign(catalog, ledger, Settings(), executor)


@pytest.mark.parametrize("protocol", ["pt", "s3.2"])
def test_a_campaign_removes_a_block_and_the_rest_of_it_goes_on(campaign, protocol):
    cell = campaign.obtain(Cell("text", protocol, "shortgpt", 0.5, 0))
    assert cell.status == "ok", cell.error
    run, base = campaign.ledger.get(cell.result), campaign.ledger.get(cell.base)
    pruned = campaign.ledger.get(run.parent)
    (gone,) = [name for name, stays in pruned.kept.items() if not stays]
    assert len(pruned.kept) == 2 and pruned.granularity == "block"
    # Heads and neurons of both blocks were at stake, as for a method that removes these.
    assert set(pruned.conduct.channels) == {
        f"blocks.{number}.{name}" for number in (0, 1) for name in ("attn.k_proj", "mlp.gate_proj")
    }
    assert pruned.conduct.equivalence < 1e-10 and pruned.conduct.replay == "same"
    parts = {name.split(".")[1] for name in campaign.ledger.weights(run) if name.startswith("blocks.")}
    assert parts == {"0", "1"} - {gone.split(".")[1]} and run.params < base.params
