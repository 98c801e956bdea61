"""The store of records: whole or not at all, verified when read, failures kept."""

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest
from builders import WEIGHTS, changed, evidence, failure, run_record, run_spec, store

from pruneaudit.errors import ConfigError, DamagedError, StorageError
from pruneaudit.ledger import store as ledger_module
from pruneaudit.ledger.records import SCHEMA_VERSION
from pruneaudit.ledger.store import Ledger


@pytest.fixture
def root(tmp_path):
    return tmp_path / "ledger"


@pytest.fixture
def ledger(root):
    return Ledger(root)


def files(folder):
    """Everything below a folder, by relative path."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_committed_run_is_found_by_another_process(ledger, root):
    record = run_record()
    assert ledger.find(record.spec) is None
    assert ledger.commit(record, WEIGHTS) == record
    again = Ledger(root)
    assert again.find(record.spec) == record
    assert again.get(record.run_id) == record
    assert again.finished() == {record.run_id}
    assert list(again.runs()) == [record]
    assert again.weights(record)["weight"].tolist() == [0, 1, 2, 3]
    folder = root / "runs" / record.folder
    assert files(folder) == ["record.json", "weights.safetensors"]
    assert list((root / "partial").iterdir()) == []


def test_commit_clears_the_state_of_the_run_and_of_no_other(ledger):
    record, other = run_record(), run_spec(seed=1)
    for spec in (record.spec, other):
        (ledger.workspace(spec) / "state.safetensors").write_bytes(b"state")
    ledger.commit(record, WEIGHTS)
    assert not ledger.workspace(record.spec, create=False).exists()
    assert (ledger.workspace(other) / "state.safetensors").exists()


@pytest.mark.parametrize("step", ["write_json", "replace"])
def test_an_interrupted_commit_leaves_no_run(ledger, root, monkeypatch, step):
    record = run_record()

    def stop(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "write_json", stop) if step == "write_json" else patch.setattr(os, "replace", stop)
        with pytest.raises(StorageError, match=r"no space left on device; make room .* the same command again"):
            ledger.commit(record, WEIGHTS)
    assert list((root / "runs").iterdir()) == []
    assert Ledger(root).find(record.spec) is None
    assert ledger.find(record.spec) is None
    # The next attempt is not disturbed by what the first one left aside.
    ledger.commit(record, WEIGHTS)
    assert Ledger(root).get(record.run_id) == record
    assert list((root / "partial").iterdir()) == []


def test_a_run_appears_at_once_with_all_its_files(ledger, root, monkeypatch):
    record = run_record()
    target, moved = root / "runs" / record.folder, []
    replace = os.replace

    def watch(source, destination):
        if destination == target:
            assert not target.exists()
            assert files(source) == ["record.json", "weights.safetensors"]
            moved.append(destination)
        replace(source, destination)

    monkeypatch.setattr(os, "replace", watch)
    ledger.commit(record, WEIGHTS)
    assert moved == [target]


def test_a_record_that_is_no_json_commits_nothing(ledger, root):
    record = changed(run_record(), accuracy=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        ledger.commit(record, WEIGHTS)
    assert list((root / "runs").iterdir()) == []


def test_a_folder_without_a_record_is_no_run_and_is_replaced(ledger, root):
    record = run_record()
    folder = root / "runs" / record.folder
    folder.mkdir()
    (folder / "leftover").write_text("")
    assert ledger.find(record.spec) is None
    ledger.commit(record, WEIGHTS)
    assert files(folder) == ["record.json", "weights.safetensors"]


def test_a_flipped_byte_in_the_weights_is_told_with_path_and_remedy(ledger, root):
    record = ledger.commit(run_record(), WEIGHTS)
    path = root / "runs" / record.folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError) as caught:
        ledger.weights(record)
    message = str(caught.value)
    assert str(path) in message and f"delete {path.parent}" in message and "run again" in message
    assert "\n" not in message


def test_missing_weights_are_told_with_remedy(ledger, root):
    record = ledger.commit(run_record(), WEIGHTS)
    path = root / "runs" / record.folder / "weights.safetensors"
    path.unlink()
    with pytest.raises(DamagedError, match=f"delete {path.parent} and run again"):
        ledger.weights(record)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"workload": 1}'])
def test_a_broken_record_is_told_with_path_and_remedy(ledger, root, content):
    record = ledger.commit(run_record(), WEIGHTS)
    path = root / "runs" / record.folder / "record.json"
    path.write_text(content)
    for read in (lambda: Ledger(root).find(record.spec), lambda: Ledger(root).get(record.run_id)):
        with pytest.raises(DamagedError) as caught:
            read()
        assert str(path) in str(caught.value) and f"delete {path.parent} and run again" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_run_is_told(ledger):
    with pytest.raises(DamagedError, match="run 0123456789abcdef is missing; run the suite again"):
        ledger.get("0123456789abcdef")


def test_failures_are_kept_and_numbered(ledger, root):
    spec, other = run_spec(), run_spec(seed=1)
    for session in ("first", "second"):
        ledger.fail(failure(spec, session, error=f"broke in {session}"))
    ledger.fail(failure(other, "second"))
    assert files(root / "failures") == sorted(
        [f"{spec.folder}-1.json", f"{spec.folder}-2.json", f"{other.folder}-1.json"]
    )
    assert {(record.spec.seed, record.session) for record in Ledger(root).failures()} == {
        (0, "first"),
        (0, "second"),
        (1, "second"),
    }


def test_a_failure_binds_its_own_session_only(ledger, root):
    spec = run_spec()
    ledger.fail(failure(spec, "first", error="out of memory"))
    assert Ledger(root).failure(spec, "first").error == "out of memory"
    assert ledger.failure(spec, "second") is None
    assert ledger.failure(run_spec(seed=1), "first") is None
    ledger.fail(failure(spec, "second", error="again"))
    # An earlier session's verdict does not change with a later failure.
    assert ledger.failure(spec, "first").error == "out of memory"
    assert ledger.failure(spec, "second").error == "again"


def test_a_failure_overwrites_none_after_one_was_deleted(ledger, root):
    spec = run_spec()
    for session in ("first", "second"):
        ledger.fail(failure(spec, session))
    (root / "failures" / f"{spec.folder}-1.json").unlink()
    ledger.fail(failure(spec, "third"))
    assert {record.session for record in ledger.failures()} == {"second", "third"}


def test_a_failed_run_is_not_finished(ledger):
    ledger.fail(failure(run_spec()))
    assert ledger.find(run_spec()) is None
    assert ledger.finished() == set()


def test_another_schema_version_is_refused_in_one_line(ledger, root):
    marker = root / "ledger.json"
    assert json.loads(marker.read_text()) == {"schema_version": SCHEMA_VERSION}
    marker.write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(ConfigError) as caught:
        Ledger(root)
    message = str(caught.value)
    assert str(root) in message and f"schema version {SCHEMA_VERSION + 1}" in message
    assert "--audit-ledger" in message and "\n" not in message


def test_a_damaged_marker_is_refused_in_one_line(ledger, root):
    (root / "ledger.json").write_text("{")
    with pytest.raises(ConfigError, match=r"ledger\.json is damaged; choose another folder"):
        Ledger(root)


def test_a_ledger_below_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        Ledger(tmp_path / "file" / "ledger")
    assert str(tmp_path / "file" / "ledger") in str(caught.value)
    assert "--audit-ledger" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path, monkeypatch):
    folder = tmp_path / "readonly"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(folder, os.W_OK):
        # The superuser may write anywhere: let the system say what it would say to others.
        def refuse(self, *_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(type(folder), "mkdir", refuse)
    with pytest.raises(ConfigError) as caught:
        Ledger(folder / "ledger")
    message = str(caught.value)
    assert message == f"ledger {folder / 'ledger'}: Permission denied; choose another folder with --audit-ledger"


def test_cells_are_views_that_a_later_attempt_replaces(ledger, root):
    cell = store(ledger, evidence())
    assert Ledger(root).cell(cell.cell.id) == cell
    assert ledger.cell("no-such-cell") is None
    store(ledger, evidence(), accuracy=12.0)
    assert [record.accuracy for record in Ledger(root).cells()] == [12.0]


def test_progress_is_one_file_for_each_process(ledger, root):
    ledger.report_progress([{"run": "a", "epoch": 1}])
    ledger.report_progress([{"run": "a", "epoch": 2}])
    # What another process wrote, and one that is being written.
    (root / "progress" / "1.json").write_text(json.dumps([{"run": "b", "time": 1.0}]))
    (root / "progress" / "2.json").write_text("{")
    found = {facts["run"]: facts for facts in Ledger(root).progress()}
    assert set(found) == {"a", "b"}
    assert found["a"]["epoch"] == 2 and found["a"]["time"] > 0
    ledger.report_progress([])
    ledger.report_progress([])
    assert [facts["run"] for facts in ledger.progress()] == ["b"]


def test_a_lock_keeps_another_handle_out_until_released(ledger, root):
    from filelock import Timeout

    mine, theirs = ledger.lock(run_spec()), Ledger(root).lock(run_spec())
    with mine.acquire(timeout=0):
        with pytest.raises(Timeout):
            theirs.acquire(timeout=0)
        # Another run is free.
        with ledger.lock(run_spec(seed=1)).acquire(timeout=0):
            pass
    with theirs.acquire(timeout=0):
        pass


def test_a_moved_ledger_is_the_same_ledger(ledger, root, tmp_path):
    record = ledger.commit(run_record(), WEIGHTS)
    shutil.move(root, tmp_path / "elsewhere")
    assert Ledger(tmp_path / "elsewhere").weights(record)["weight"].tolist() == [0, 1, 2, 3]


def test_reading_a_ledger_needs_no_torch(ledger, root):
    ledger.commit(run_record(), WEIGHTS)
    code = (
        "import sys; from pathlib import Path; from pruneaudit.ledger.store import Ledger; "
        "print(len(list(Ledger(Path(sys.argv[1])).runs())), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


# Looking only


def tree(root):
    """Everything below a folder with its times: what any writing would change."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in [root, *root.rglob("*")]}


def test_looking_at_a_ledger_reads_everything_and_writes_nothing(ledger, root, monkeypatch):
    cell = store(ledger, evidence())
    ledger.fail(failure(run_spec("scratch")))
    ledger.report_progress([{"run": "a"}])
    # A copy that took files only has no empty folders.
    (root / "locks").rmdir()
    before = tree(root)
    for name in ("mkdir", "unlink", "write_text", "write_bytes", "touch"):
        # The superuser may write anywhere: say what the system would say to others.
        monkeypatch.setattr(type(root), name, lambda *_, **__: pytest.fail("wrote"))
    looked = Ledger(root, writable=False)
    assert looked.finished() == ledger.finished()
    assert [run.run_id for run in looked.runs()] == [run.run_id for run in ledger.runs()]
    assert looked.weights(looked.get(cell.result))["weight"].tolist() == [0, 1, 2, 3]
    assert looked.cell(cell.cell.id) == cell and looked.cells() == [cell]
    assert looked.cells_by_key() == {cell.cell.id: cell}
    assert len(looked.failures()) == 1 and looked.failure(run_spec("scratch"), "session") is not None
    assert [facts["run"] for facts in looked.progress()] == ["a"]
    assert not looked.workspace(run_spec(), create=False).exists()
    # The progress of another process that had this process's id is not ours to take away.
    looked.report_progress([])
    assert tree(root) == before


@pytest.mark.parametrize(
    "write",
    [
        lambda ledger: ledger.commit(run_record(), WEIGHTS),
        lambda ledger: ledger.fail(failure(run_spec())),
        lambda ledger: ledger.save_cell(evidence().cell, "key"),
        lambda ledger: ledger.report_progress([{"run": "a"}]),
        lambda ledger: ledger.workspace(run_spec()),
        lambda ledger: ledger.lock(run_spec()),
    ],
    ids=["commit", "fail", "save_cell", "report_progress", "workspace", "lock"],
)
def test_writing_to_a_ledger_that_was_opened_to_look_is_a_programming_error(ledger, root, write):
    before = tree(root)
    with pytest.raises(RuntimeError, match=f"{root} was opened to look only"):
        write(Ledger(root, writable=False))
    assert tree(root) == before


def test_a_folder_that_is_no_ledger_is_told_and_not_made_one(tmp_path):
    (tmp_path / "folder").mkdir()
    for folder in (tmp_path / "folder", tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=f"^{folder} is no ledger; ") as caught:
            Ledger(folder, writable=False)
        assert "\n" not in str(caught.value)
    assert list((tmp_path / "folder").iterdir()) == [] and not (tmp_path / "nowhere").exists()


def test_looking_at_another_schema_version_is_refused(ledger, root):
    (root / "ledger.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(ConfigError, match=f"schema version {SCHEMA_VERSION + 1}"):
        Ledger(root, writable=False)
