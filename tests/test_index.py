"""An index of a ledger saves time and changes no word of a report: what was edited since is read anew, and what is in
doubt as well."""

import json
import os
import pickle
import shutil
import sqlite3
from pathlib import Path

import pytest
from builders import CATALOG, evidence, kind, run_record, run_spec, store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pruneaudit.cli import _rechecked
from pruneaudit.errors import DamagedError
from pruneaudit.ledger import index as index_module
from pruneaudit.ledger import store as store_module
from pruneaudit.ledger.chain import Writer
from pruneaudit.ledger.index import IndexedRun, Reader, content_of
from pruneaudit.ledger.records import RunRecord, Scores, Shown, TextMeasure
from pruneaudit.ledger.store import Ledger, _is_written, sealed, write_json
from pruneaudit.report.results import gather_ledger


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A ledger with two arms over two seeds, indexed however small and new it is."""
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store_module, "LEAST", 1)
    monkeypatch.setattr(index_module, "_SETTLED", 0)
    ledger = Ledger(tmp_path / "ledger")
    for seed in (0, 1):
        for name in ("l1", "tpp", "scratch"):
            store(ledger, evidence(name, seed=seed))
    return ledger.root


@pytest.fixture
def opened(monkeypatch):
    """Names of the records that were opened since."""
    found = []
    read_file = store_module.read_file

    def noting(path, *more):
        if path.name == "record.json" or path.parent.name == "cells":
            found.append(path)
        return read_file(path, *more)

    monkeypatch.setattr(store_module, "read_file", noting)
    return found


def report(root):
    """All that a report says."""
    return json.dumps(gather_ledger(CATALOG, Ledger(root, writable=False)).as_json())


def cache():
    return Path(os.environ["PRUNEAUDIT_CACHE"])


def index_file():
    (found,) = cache().rglob("*.sqlite")
    return found


def a_record(root):
    return min(root.glob("runs/*-retrain-l1-*/record.json"))


def edit(path, old, new):
    """Change some bytes and have the file look as before, as far as anybody can."""
    facts, text = path.stat(), path.read_bytes()
    assert old in text and len(old) == len(new)
    path.write_bytes(text.replace(old, new))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_mtime_ns == facts.st_mtime_ns and path.stat().st_size == facts.st_size


def test_a_second_report_opens_no_record_and_says_the_same(root, opened, monkeypatch):
    """The ledger itself stays as it is."""
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with monkeypatch.context() as without:
        without.setattr(store_module, "LEAST", 10**9)
        plain = report(root)
    assert not cache().exists()
    opened.clear()
    assert report(root) == plain
    assert opened
    opened.clear()
    assert report(root) == plain
    assert opened == []
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_is_new_is_read_and_indexed(root, opened):
    report(root)
    store(Ledger(root), evidence("random", seed=0))
    opened.clear()
    text = report(root)
    assert '"random"' in text
    assert opened and all("random" in path.parent.name or "random" in path.name for path in opened)
    opened.clear()
    assert report(root) == text
    assert opened == []


def test_a_cell_that_is_measured_anew_is_seen_by_whoever_looks_again(root):
    report(root)
    watching = Ledger(root, writable=False)
    gather_ledger(CATALOG, watching)
    arm = evidence("l1")
    store(Ledger(root), arm, accuracy=61.25)
    rows = gather_ledger(CATALOG, watching).cells
    assert [row["accuracy"] for row in rows if (row["method"], row["seed"]) == ("l1", 0)] == [61.25]


def test_a_reporting_command_asks_of_each_record_once_and_opens_none(root, opened, monkeypatch):
    """Before it judges it looks at which weights nobody evaluated again, and for that it needs no cell."""
    plain = report(root)
    asked = []
    all_seen = store_module.all_seen

    def noting(place, names):
        asked.extend(names)
        return all_seen(place, names)

    monkeypatch.setattr(store_module, "all_seen", noting)
    opened.clear()
    ledger, _ = _rechecked(root, CATALOG, 0, None)
    assert json.dumps(gather_ledger(CATALOG, ledger).as_json()) == plain
    assert sorted(asked) == sorted(
        str(path.relative_to(root)) for part in ("runs/*/record.json", "cells/*") for path in root.glob(part)
    )
    assert opened == []


def test_a_ledger_in_the_working_directory_has_an_index_too(root, opened, monkeypatch):
    plain = report(root)
    monkeypatch.chdir(root)
    opened.clear()
    assert report(Path()) == plain
    assert opened == []


@pytest.mark.parametrize("place", ["run", "cell"])
def test_an_edit_is_noticed_though_size_and_time_are_as_before(root, place):
    report(root)
    path = a_record(root) if place == "run" else min((root / "cells").glob("*-l1-*"))
    edit(path, b"75.0", b"95.0")
    again = Ledger(root, writable=False)
    results = gather_ledger(CATALOG, again)
    assert "95.0" not in json.dumps(results.as_json())
    assert any(str(path) in problem for problem in (*again.damaged.values(), *(row["error"] for row in results.cells)))


@pytest.mark.parametrize("what", ["moved", "link", "removed"])
def test_a_record_in_another_place_is_not_believed(root, tmp_path, what):
    report(root)
    folder = a_record(root).parent
    run_id = folder.name.rpartition("-")[2]
    if what == "moved":
        folder = folder.rename(folder.with_name(folder.name.replace("seed0", "seed7")))
    elif what == "link":
        shutil.move(folder, tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        shutil.rmtree(folder)
    again = Ledger(root, writable=False)
    again.recall()
    with pytest.raises(
        DamagedError, match={"moved": "was moved here", "link": "is a link", "removed": "missing"}[what]
    ):
        again.get(run_id)


def test_what_stored_weights_contradict_is_refused_from_the_index_as_well(root):
    report(root)
    ledger = Ledger(root)
    run_id = a_record(root).parent.name.rpartition("-")[2]
    ledger.remember_checks([(ledger.get(run_id), "its weights say otherwise")])
    again = Ledger(root, writable=False)
    again.recall()
    with pytest.raises(DamagedError, match="its weights say otherwise"):
        again.get(run_id)


def test_a_file_that_may_still_change_within_a_tick_is_not_indexed(root, opened, monkeypatch):
    monkeypatch.setattr(index_module, "_SETTLED", 3600 * 10**9)
    report(root)
    opened.clear()
    report(root)
    assert opened


@pytest.mark.parametrize("edited", ["content", "kind", "name", "packed", "text", "no text", "key"])
def test_a_forged_row_is_not_believed(root, opened, monkeypatch, tmp_path, edited):
    """Whoever writes to the index has no key."""
    plain = report(root)
    if edited == "key":
        monkeypatch.setattr(index_module, "own_key", lambda: b"another key")
    with sqlite3.connect(index_file()) as database:
        if edited == "content":
            database.execute("UPDATE runs SET content = CAST(replace(content, '75.0', '95.0') AS BLOB)")
        elif edited == "kind":
            database.execute("UPDATE runs SET content = 75, mac = NULL")
        elif edited == "name":
            rows = database.execute("SELECT * FROM cells").fetchall()
            others = [name for name, *_ in rows[1:] + rows[:1]]
            moved = [(name, *row) for name, (_, *row) in zip(others, rows, strict=True)]
            database.executemany("REPLACE INTO cells VALUES (?, ?, ?, ?)", moved)
        elif edited == "packed":
            database.execute("UPDATE runs SET packed = substr(packed, 2)")
        elif edited == "text":
            database.execute("UPDATE texts SET text = replace(text, 'fp32', 'bf16')")
        elif edited == "no text":
            database.execute("DELETE FROM texts")
    opened.clear()
    assert report(root) == plain
    assert opened


def test_a_damaged_index_is_made_anew(root, opened):
    plain = report(root)
    index_file().write_bytes(b"no database" * 1000)
    assert report(root) == plain
    opened.clear()
    assert report(root) == plain
    assert opened == []


def test_where_no_index_can_be_kept_a_report_reads_all(root, opened, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "file"))
    plain = report(root)
    opened.clear()
    assert report(root) == plain
    assert opened


def test_an_index_that_another_process_writes_waits_for_nobody(root, opened, monkeypatch):
    plain = report(root)
    store(Ledger(root), evidence("random", seed=0))
    monkeypatch.setattr(index_module, "_PATIENCE", 0.01)
    other = sqlite3.connect(index_file(), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with_random = report(root)
    other.close()
    assert with_random != plain
    opened.clear()
    assert report(root) == with_random
    assert opened, "the row of what was new was not written"


def test_rows_of_another_layout_are_read_anew(root, opened, monkeypatch):
    plain = report(root)
    index_module._layout.cache_clear()
    monkeypatch.setattr(index_module, "__version__", "0.0.0")
    opened.clear()
    assert report(root) == plain
    assert opened
    index_module._layout.cache_clear()


def full_records():
    """Records with something in every field that is no number or text."""
    arm = evidence()
    scores = Scores(test=1.5, validation=2.0, test_curve=[3.0, 1.5], validation_curve=[2.5, 2.0], outcomes="gA==")
    yield from (run for run in (arm.base, arm.topup, arm.prune, *arm.trials) if run is not None)
    yield run_record(run_spec("scratch", ratio=0.5, widths={"conv1": 3}), kind=kind(), beside={"top5": 99.0})
    yield run_record(scores=scores, text=TextMeasure(window=8, tokens=9, ids="ab"), shown=Shown(examples=3, tokens=4))
    yield run_record(run_spec(model_args={"width": 2, "deep": [1, 2.5]}, layer_ratios=[["fc*", 0.25]], skip=["fc"]))
    yield run_record(nonzero=[5, 4, 3], epoch_starts=[0, 2], stay={"conv1": 7}, method_parameters={"rates": [1.0, 2]})


@pytest.mark.parametrize("record", list(full_records()), ids=range(8))
def test_a_record_of_an_index_is_the_record(record):
    """Field by field, types included, and as a whole."""
    link = Writer().link("00")
    read = Reader(lambda folder: record)
    row = content_of(record, link)
    found, same = read.run(row._replace(content=json.loads(json.dumps(row.content))))
    assert isinstance(found, IndexedRun) and same == link
    for name in RunRecord.model_fields:
        ours, theirs = getattr(found, name), getattr(record, name)
        assert ours == theirs and type(ours) is type(theirs) and repr(ours) == repr(theirs), name
    for name in (
        "run_id",
        "left",
        "folder",
        "slug",
        "needs",
        "spec",
        "value",
        "validation_curve",
        "starts",
        "speedup",
    ):
        assert getattr(found, name) == getattr(record, name), name
    # The same numbers, in another kind of sequence.
    assert [*found.curve] == [*record.curve] and len(found.curve) == len(record.curve)
    assert found == record and record == found and found.model_dump() == record.model_dump()
    assert dict(found) == dict(record) and found.model_copy(update={"accuracy": 1.0}).accuracy == 1.0
    assert pickle.loads(pickle.dumps(found)) == record
    with pytest.raises(AttributeError):
        found.no_such_field  # noqa: B018


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.dictionaries(st.text(), VALUES, max_size=3), data=st.data())
def test_the_text_of_a_record_tells_what_its_digest_tells(content, data, tmp_path_factory):
    """Of whatever it holds: as written it is told at once, and no change of a byte is taken for what was written."""
    content |= {"accuracy": 1.0, "version": 3}
    for name in ("digest", "link"):
        content.pop(name, None)
    whole = sealed(content)
    path = tmp_path_factory.getbasetemp() / "record.json"
    write_json(path, {**whole, "link": Writer().link(whole["digest"]).model_dump()})
    text = path.read_bytes()
    assert _is_written(text, whole["digest"])
    place = data.draw(st.integers(0, len(text) - 1))
    other = text[:place] + bytes([data.draw(st.integers(33, 126))]) + text[place + 1 :]
    try:
        read = json.loads(other)
    except ValueError:
        return
    read.pop("link", None)
    if _is_written(other, whole["digest"]):
        assert {**read, "digest": None} == {**whole, "digest": None}
