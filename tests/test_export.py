"""What was judged can be loaded elsewhere, and computes the same."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.export import export
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.cli import app
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.store import Ledger
from pruneaudit.pruning import shapes
from pruneaudit.training.runtime import Runtime

torch.set_num_threads(1)

CATALOG = Catalog()
WORKLOAD = CATALOG.workload("lenet5-digits")
METHODS = ("l1", "scratch", "magnitude-layer")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    ledger = Ledger(tmp_path_factory.mktemp("ledger"))
    executor = LocalExecutor(ledger, Stages(ledger, CATALOG, Runtime()), "session")
    return Campaign(CATALOG, ledger, Settings("smoke"), executor)


def finished(campaign, method):
    return campaign.ledger.get(campaign.obtain(Cell(WORKLOAD.name, "s3.2", method, 0.5, 0)).result)


def judged(campaign, method):
    """The network of a run, as its widths and its weights say."""
    widths = {} if method == "magnitude-layer" else shapes.widths_at(WORKLOAD, 0.5)
    network = shapes.network(WORKLOAD, widths)
    tensors = campaign.ledger.weights(finished(campaign, method))
    network.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith("mask:")})
    return network.eval(), widths


IMAGES = torch.randn(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", METHODS)
def test_weights_fit_a_network_of_the_widths_in_their_metadata(campaign, tmp_path, method):
    network, widths = judged(campaign, method)
    to = tmp_path / "model.safetensors"
    export(campaign.ledger, CATALOG, finished(campaign, method).run_id[:10], to)
    with safe_open(to, "pt") as file:
        facts = file.metadata()
    assert json.loads(facts["widths"]) == widths and facts["model"] == "lenet5"
    assert facts["run"] == finished(campaign, method).run_id
    again = shapes.network(WORKLOAD, json.loads(facts["widths"]))
    again.load_state_dict(load_file(to))
    assert torch.equal(again.eval()(IMAGES), network(IMAGES))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_program_needs_no_code_and_takes_any_batch(campaign, tmp_path):
    network, widths = judged(campaign, "l1")
    to = tmp_path / "model.pt2"
    result = CliRunner().invoke(
        app, ["export", finished(campaign, "l1").run_id, "--to", str(to), "--ledger", str(campaign.ledger.root)]
    )
    assert result.exit_code == 0 and str(to) in result.output, result.output
    extra = {"pruneaudit.json": ""}
    program = torch.export.load(to, extra_files=extra).module()
    assert json.loads(json.loads(extra["pruneaudit.json"])["widths"]) == widths
    for count in (1, 5):
        torch.testing.assert_close(program(IMAGES[:count]), network(IMAGES[:count]), rtol=1e-5, atol=1e-6)


def test_onnx_computes_the_same(campaign, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network, widths = judged(campaign, "l1")
    to = tmp_path / "model.onnx"
    export(campaign.ledger, CATALOG, finished(campaign, "l1").run_id, to)
    session = onnxruntime.InferenceSession(to, providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["widths"]) == widths
    (entry,) = session.get_inputs()
    for count in (1, 5):
        (outputs,) = session.run(None, {entry.name: IMAGES[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(outputs), network(IMAGES[:count]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("run", "to", "message"),
    [
        ("", "model.pkl", "expected a file that ends in .safetensors, .pt2, .onnx"),
        ("", "no/model.pt2", "no such folder; create"),
        ("zzz", "model.pt2", "no run with an id that begins with 'zzz'; see `pruneaudit runs`"),
        ("", "model.pt2", "runs with an id that begins with ''"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(campaign, tmp_path, run, to, message):
    finished(campaign, "l1")
    with pytest.raises(ConfigError) as caught:
        export(campaign.ledger, CATALOG, run, tmp_path / to)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
