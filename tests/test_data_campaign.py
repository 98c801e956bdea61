"""A workload on a user's own folder of images, from plan to record."""

import shutil

import pytest
from pictures import folder, picture

from pruneaudit.campaign.cost import cost
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign, _data_digest
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog, content_root
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.store import Ledger
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import identity, load, loading
from pruneaudit.workloads.data.brought import find

CELL = Cell("leaves", "s3.2", "l1", 0.5, 0)


@pytest.fixture
def known(tmp_path, monkeypatch):
    """A catalogue with a workload on grey images in a folder, streamed however few they are."""
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "RESIDENT_BYTES", 0)
    root = tmp_path / "content"
    for name in ("methods", "protocols"):
        shutil.copytree(content_root() / name, root / name)
    images = folder(tmp_path / "leaves", {"train": {"cat": 26, "dog": 25}, "val": {"cat": 4, "dog": 5}}, (32, 32), "L")
    text = (root / "protocols" / "workloads" / "lenet5-digits.toml").read_text(encoding="utf-8")
    head, rest = text.split("[data]")
    data = f'[data]\nname = "imagefolder:{images}"\npad = 2\n\n[sgd]'
    path = root / "protocols" / "workloads" / "leaves.toml"
    path.write_text(f"{head}{data}{rest.partition('[sgd]')[2]}".replace("epochs = 30", "epochs = 3"), encoding="utf-8")
    caches = (find, load, loading._facts_of, _data_digest)
    for cache in caches:
        cache.cache_clear()
    yield Catalog(root=root)
    for cache in caches:
        cache.cache_clear()


def test_a_folder_is_planned_trained_pruned_and_recorded(known, tmp_path):
    stages = Stages(Ledger(tmp_path / "ledger"), known, Runtime())
    executor = LocalExecutor(stages.ledger, stages, "test")
    campaign = Campaign(known, stages.ledger, Settings(budget="smoke"), executor)
    record = campaign.obtain(CELL)
    assert record.status == "ok", record.error
    data = known.workload("leaves").data
    runs = [stages.ledger.get(run) for run in record.runs]
    assert {run.data_digest for run in runs} == {identity(data)} != {None}
    dataset = load(data)
    assert dataset.obstacle == "data is streamed"
    assert {(run.split_digest, run.classes, run.train_images, run.test_images) for run in runs} == {
        (dataset.split_digest, 2, 46, 9)
    }
    prune = stages.ledger.get(record.prune)
    # The harness read files under the method's eyes, and handed out all of its images.
    assert prune.conduct.reached == () and prune.conduct.foreign_samples == 0 and prune.conduct.equivalence < 1e-10


def test_relative_paths_stay_relative_to_the_workload(known, tmp_path):
    data = known.workload("leaves").data.model_copy(update={"name": "imagefolder:leaves", "folder": tmp_path})
    known.workloads["leaves"] = known.workload("leaves").model_copy(update={"data": data})
    base = Campaign(known, None, Settings(budget="smoke"), None).plan(CELL).base
    assert base.data.folder == tmp_path and base.data_digest == identity(data)
    stored = type(base).model_validate_json(base.model_dump_json())
    assert stored.run_id == base.run_id and stored.data.folder is None, "no part of identity"
    assert cost(stored, known) == cost(base, known), "what a ledger holds finds its data by its workload"


def test_data_that_change_while_a_campaign_runs_are_refused(known, tmp_path):
    stages = Stages(Ledger(tmp_path / "ledger"), known, Runtime())
    base = Campaign(known, stages.ledger, Settings(budget="smoke"), None).plan(CELL).base
    picture(1000, (32, 32), "L").save(tmp_path / "leaves" / "train" / "cat" / "003.png")
    with pytest.raises(ConfigError, match=r"data 'imagefolder:.*leaves' changed while the suite ran; start again"):
        stages.execute(base)
    for cache in (find, load, loading._facts_of, _data_digest):
        cache.cache_clear()
    again = Campaign(known, stages.ledger, Settings(budget="smoke"), None).plan(CELL).base
    assert again.run_id != base.run_id
