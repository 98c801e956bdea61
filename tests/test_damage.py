"""A bit is flipped, or the end is lost, in any file of a ledger or of a dataset: told, redone, or without a meaning."""

import json
from pathlib import Path

import pytest
import torch
from builders import CATALOG, evidence, failure, run_spec, store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import folder

from pruneaudit.audit.rounds import Family, register
from pruneaudit.audit.sequential import Plan
from pruneaudit.errors import AuditError, ConfigError
from pruneaudit.ledger.store import Ledger
from pruneaudit.report.results import gather_ledger
from pruneaudit.report.serve import Site
from pruneaudit.report.writer import markdown
from pruneaudit.workloads.data import builtin, load
from pruneaudit.workloads.data.builtin import see_that_it_is_whole
from pruneaudit.workloads.data.loading import _facts_of
from pruneaudit.workloads.metrics import ACCURACY
from pruneaudit.workloads.schema import DataConfig


def damaged(content, data):
    """A file with one bit of another value, or without its end."""
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        return content[:place]
    return content[:place] + bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))]) + content[place + 1 :]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A ledger with a file of every kind."""
    ledger = Ledger(tmp_path_factory.mktemp("damage") / "ledger")
    pairs = (("l1", "tpp", 0.5),)
    plan = Plan(seeds=12, comparisons=1, margin=0.5)
    family = Family(workload="lenet5-digits", protocol="s3.2", labels=(), pairs=pairs, plan=plan)
    register(ledger, family, lambda _: None, ACCURACY)
    for name in ("l1", "tpp"):
        store(ledger, evidence(name))
    ledger.fail(failure(run_spec("scratch")))
    ledger.remember_looks("resnet20-digits-s3.2", {"a-b": [6]})
    ledger.remember_checks([(run, "") for run in ledger.runs()])
    ledger.leave_out([link for link in ledger._links.values() if link is not None])
    ledger.save_part("study-1", "part-1", {"values": [1, 2, 3]})
    ledger.report_progress([{"run": "r", "id": "0" * 16, "epoch": 1, "epochs": 2}])
    ledger.report_plan("session", {"runs": [{"id": "0" * 16, "run": "r"}], "cells": {}})
    return ledger.root


def judged(root):
    """All that is made of a ledger, and what is told of it; raises what a command shows as one line."""
    ledger = Ledger(root, writable=False)
    results = gather_ledger(CATALOG, ledger)
    markdown(results)
    looks, parts = ledger.looks("resnet20-digits-s3.2"), ledger.part("study-1", "part-1")
    plans = [plan.model_dump_json() for plan in ledger.planned(Family)]
    # What a server says has no place for an error: it goes on with what can be read.
    json.loads(Site(root, Path("nowhere")).progress())
    failures = [failed.model_dump_json() for failed in ledger.failures()]
    told = [*ledger.damaged.values(), *results.ledger, *(row["error"] for row in results.cells)]
    return json.dumps([results.as_json(), looks, parts, plans, failures], default=str), told


@pytest.fixture(scope="module")
def right(root):
    return judged(root)[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_is_damaged_in_a_ledger_is_told_and_never_used(root, right, data):
    kinds = sorted({path.relative_to(root).parts[0] for path in root.rglob("*.*") if path.suffix != ".lock"})
    assert {"runs", "cells", "failures", "planned", "looks", "checked", "merged", "populations"} <= set(kinds)
    kind = data.draw(st.sampled_from(kinds))
    files = [root / kind] if (root / kind).is_file() else sorted(p for p in (root / kind).rglob("*") if p.is_file())
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, data))
    try:
        found, told = judged(root)
    except AuditError as error:
        assert str(root) in str(error) and "\n" not in str(error)
    else:
        name = path.parent.name if path.parent.parent.name == "runs" else path.stem
        # Of a record, its own file is named; of what merges left out, the records that it spoke for; and where the name
        # of a key is damaged, nothing but that name, as one that is not here.
        is_told = any(name in line or "not there any more" in line or "which is not here" in line for line in told)
        assert found == right or is_told, f"{path} is used as if nothing had happened"
    finally:
        path.write_bytes(whole)


def test_a_damaged_name_of_a_key_is_a_key_that_is_not_here(root, right):
    path = root / "planned" / "lenet5-digits-s3.2.json"
    whole = path.read_bytes()
    key = json.loads(whole)["link"]["key"].encode()
    try:
        path.write_bytes(whole.replace(key, (b"1" if key.startswith(b"0") else b"0") + key[1:]))
        found, told = judged(root)
    finally:
        path.write_bytes(whole)
    assert found != right and any("which is not here" in line for line in told)


def pictures(root):
    return folder(root / "leaves", {"train": {"cat": 6, "dog": 6}, "test": {"cat": 2, "dog": 2}}, (8, 6))


def loaded(root):
    load.cache_clear()
    _facts_of.cache_clear()
    return load(DataConfig(name=f"imagefolder:{root}"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_damaged_in_a_folder_of_images_is_told_or_another_dataset(tmp_path_factory, data):
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("images")
        patch.setenv("PRUNEAUDIT_CACHE", str(root / "cache"))
        leaves = pictures(root)
        before = loaded(leaves)
        path = data.draw(st.sampled_from(sorted(leaves.rglob("*.png"))))
        path.write_bytes(damaged(path.read_bytes(), data))
        try:
            after = loaded(leaves)
            if after.split_digest == before.split_digest:
                # What was damaged says nothing of the picture. With another digest runs are other runs.
                for one, other in ((before.train, after.train), (before.test, after.test)):
                    assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        except ConfigError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_torchvision_reads_damaged_files_and_the_audit_does_not(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    content = b"images"
    (raw / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ConfigError, match=r"train-images-idx3-ubyte is damaged: .*; delete it, and get it again"):
        see_that_it_is_whole("MNIST", tmp_path)
    with pytest.raises(ConfigError, match="is damaged"):
        builtin.LOADERS["mnist"](DataConfig(name="mnist"), tmp_path, False)
    monkeypatch.setitem(builtin._WHOLE["MNIST"], "train-images-idx3-ubyte", "59b514174bffe4ae402b3d63aad79fe0")
    see_that_it_is_whole("MNIST", tmp_path)
    # Of others torchvision looks itself.
    see_that_it_is_whole("CIFAR10", tmp_path)
