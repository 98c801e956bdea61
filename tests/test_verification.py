"""Runs are trained again: bit-identical, within tolerance, different or forged, and why."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from builders import changed
from court import Court, arm
from typer.testing import CliRunner

from pruneaudit.campaign.verification import compare, differences, verify
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.cli import app
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.store import Ledger, sealed
from pruneaudit.studies.slopes import slopes_of
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.recipes import Recipe

torch.set_num_threads(1)
CATALOG = Catalog()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A base, a pruning and a retraining of lenet5-digits, and one of single weights."""
    court = Court(tmp_path_factory.mktemp("verified") / "ledger")
    for name in ("l1", "magnitude-layer"):
        court.measure(arm(name))
    return court.ledger.root


@pytest.fixture
def root(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "ledger")


def verified(root, *runs, **more):
    ledger = Ledger(root, writable=False)
    return {one.run: one for one in verify(ledger, CATALOG, Runtime(), runs, **more)}


def run_of(root, pattern):
    (path,) = (root / "runs").glob(f"*{pattern}*")
    return path


def arm_of(ledger, method, **change):
    """Pruned and retrained network of a method, as a study reads it."""
    stages = {run.stage: run for run in ledger.runs() if run.method == method}
    return SimpleNamespace(prune=stages["prune"], result=stages["retrain"].model_copy(update=change))


def test_jacobians_are_followed_through_a_retraining(root):
    ledger = Ledger(root)
    arm = arm_of(ledger, "l1")
    found = slopes_of("mine", arm, ledger, CATALOG, Runtime())
    assert len(found.running) == arm.result.recipe.epochs + 1 and found.batch == []
    assert (found.running[0], found.running[-1]) == (arm.prune.jacobian.mean, arm.result.jacobian.mean)
    # It is kept: whoever only judges trains nothing, and is told of what is not there.
    judging = Ledger(root, writable=False)
    assert slopes_of("mine", arm, judging, None, None) == found
    with pytest.raises(ConfigError, match=r"study mine: Jacobians along .*magnitude-layer.*without --audit-from"):
        slopes_of("mine", arm_of(judging, "magnitude-layer"), judging, CATALOG, Runtime())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_digest": "0" * 64}, "retrained again it is another network"),
        ({"stage": "scratch"}, "nothing was pruned and retrained there"),
        ({"recipe": Recipe(epochs=1, lr="0:0.1", batch=64, ranks=2)}, "2 ranks trained it"),
    ],
)
def test_what_cannot_be_followed_is_told_in_one_line(root, change, message):
    ledger = Ledger(root)
    with pytest.raises(ConfigError, match=message) as error:
        slopes_of("mine", arm_of(ledger, "l1", **change), ledger, CATALOG, Runtime())
    assert "\n" not in str(error.value) and "leave per_epoch out" in str(error.value)
    assert not list(ledger.root.glob("populations/*/*"))


def edit(path, unsigned=False, **changes):
    """Edit a record; ``unsigned``: as somebody does who takes the signature away."""
    content = json.loads((path / "record.json").read_text()) | changes
    link = content.pop("link")
    del content["digest"]
    (path / "record.json").write_text(json.dumps(sealed(content) | ({} if unsigned else {"link": link})))


def test_what_was_trained_here_is_bit_identical(measured):
    """Base, pruned and retrained, of filters and of single weights."""
    before = {path: path.stat().st_mtime_ns for path in measured.rglob("*")}
    found = verified(measured)
    assert [one.word for one in found.values()] == ["bit-identical"] * 5
    assert [name.split("-")[2] for name in found] == ["pretrain", "prune", "prune", "retrain", "retrain"]
    assert {path: path.stat().st_mtime_ns for path in measured.rglob("*")} == before


def test_an_accuracy_that_its_weights_do_not_give_is_forged(root):
    """Whoever has the key, or takes the signature away, still has no weights that are so good."""
    path = run_of(root, "retrain-l1")
    edit(path, unsigned=True, accuracy=99.0)
    (one,) = verified(root, path.name.rpartition("-")[2], retrain=False).values()
    assert one.word == "forged" and one.why.endswith("% of the test images right; the record says 99.00 %")


def test_a_forged_signature_is_named(root):
    path = run_of(root, "retrain-l1")
    edit(path, accuracy=99.0)
    found = verified(root, retrain=False)
    assert {one.word for name, one in found.items() if name != path.name} == {"weights agree"}
    assert found[path.name].word == "forged" and "edited: this pruneaudit did not write it so" in found[path.name].why


def test_weights_of_another_run_are_forged(root):
    one, other = run_of(root, "retrain-l1"), run_of(root, "prune-l1")
    shutil.copy(other / "weights.safetensors", one)
    (found,) = verified(root, one.name.rpartition("-")[2]).values()
    assert found.word == "forged" and "the weights changed after the run wrote them" in found.why


def test_weights_and_digest_of_another_training_are_different(root):
    """Other weights with a record that fits them: only training again shows that nobody gets them so."""
    one, other = run_of(root, "retrain-l1"), run_of(root, "prune-l1")
    shutil.copy(other / "weights.safetensors", one)
    theirs = json.loads((other / "record.json").read_text())
    fields = ("accuracy", "correct", "weights_digest")
    edit(one, unsigned=True, **{name: theirs[name] for name in fields})
    (found,) = verified(root, one.name.rpartition("-")[2]).values()
    assert found.word == "different" and "somebody made the record" in found.why
    assert f"{theirs['accuracy']:.2f} in the ledger" in found.why and "weights_digest" in found.why


def test_what_differs_is_explained(measured):
    ledger = Ledger(measured, writable=False)
    stored = next(ledger.runs())
    assert compare(stored, changed(stored, seconds=99.0, finished="later"), 0.5).word == "bit-identical"
    near = changed(stored, accuracy=stored.accuracy + 0.4, weights_digest="ab" * 32)
    assert compare(stored, near, 0.5).word == "within tolerance" and compare(stored, near, 0.3).word == "different"
    newer = changed(near, environment={**stored.environment, "torch": "9.9"})
    assert f"it was made with torch {torch.__version__} and 9.9" in compare(stored, newer, 0.5).why
    elsewhere = changed(near, kind=stored.kind.model_copy(update={"vectors": "NEON"}))
    assert f"it was made with vectors {stored.kind.vectors} and NEON" in compare(stored, elsewhere, 0.5).why
    assert "depend on what trained beside it" in compare(changed(stored, backend="grouped"), near, 0.5).why
    assert differences({"a": "1"}, {"b": "2"}) == ["a 1 and none", "b none and 2"]


def test_a_method_that_changed_cannot_be_verified(root):
    path = run_of(root, "prune-l1")
    content = json.loads((path / "record.json").read_text())
    assert content["method"] == "l1"
    catalog = Catalog(extra_methods=())
    vars(catalog.method("l1"))["digest"] = "ab" * 32
    (found,) = verify(Ledger(root, writable=False), catalog, Runtime(), [content_id(path)])
    assert (found.word, found.why) == ("not verified", "method 'l1' changed while the suite ran; start again")


def content_id(path):
    return path.name.rpartition("-")[2]


def test_an_unknown_run_is_refused(measured):
    with pytest.raises(ConfigError, match="no run with an id that begins with 'zz'"):
        verified(measured, "zz")


def test_the_command(root):
    def command(*arguments):
        return CliRunner().invoke(app, ["verify", "--ledger", str(root), "--device", "cpu", *arguments])

    path = run_of(root, "retrain-l1")
    done = command(content_id(path)[:8])
    assert (done.exit_code, done.output) == (0, f"bit-identical: {path.name}\n")
    edit(path, accuracy=99.0)
    done = command("--all", "--weights", "--json")
    assert done.exit_code == 1
    rows = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    assert [row["verdict"] for row in rows] == ["forged", *["weights agree"] * 4]
    with pytest.raises(ConfigError, match="name the runs to verify, or give --all"):
        CliRunner().invoke(app, ["verify", "--ledger", str(root)], standalone_mode=False, catch_exceptions=False)
