"""A ledger's finished runs in object storage: nothing is renamed, replaced or locked, and a kill tears nothing."""

import hashlib
import itertools
import sys

import pytest
from builders import WEIGHTS, changed, evidence, failed_cell, failure, run_record, run_spec, store
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from test_merging import held as merged

from pruneaudit import cli
from pruneaudit.errors import AuditError, ConfigError, DamagedError, StorageError
from pruneaudit.ledger import objects
from pruneaudit.ledger.merging import Merged, merge
from pruneaudit.ledger.objects import Pushed, Store
from pruneaudit.ledger.store import Ledger

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def s3():
    """A server of S3's protocol in this process, where `make cluster` installed one; gives the name of a bucket."""
    moto = pytest.importorskip("moto.server", reason="needs moto[server] and s3fs: make cluster")
    s3fs = pytest.importorskip("s3fs", reason="needs moto[server] and s3fs: make cluster")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "anybody")
        try:
            s3fs.S3FileSystem().mkdir("bucket")
            yield "bucket"
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def url(request, tmp_path):
    """An empty place of some of fsspec's systems; that of memory is one for the whole process."""
    if request.param == "file":
        yield f"file://{tmp_path / 'bucket'}"
        return
    if request.param == "s3":
        yield f"s3://{request.getfixturevalue('s3')}/{next(NUMBERS)}"
        return
    yield f"memory://bucket-{next(NUMBERS)}/ledger"
    MemoryFileSystem.store.clear()


@pytest.fixture
def two(tmp_path):
    """Ledgers of two hosts, each with an arm on one base model, what failed in both, and what both looked at."""
    left, right = Ledger(tmp_path / "left"), Ledger(tmp_path / "right")
    for ledger, method, error, seeds in ((left, "l1", "out of memory", [3]), (right, "tpp", "no space", [4])):
        store(ledger, evidence(method))
        ledger.fail(failure(run_spec("scratch"), error=error))
        ledger.remember_looks("digits-s3.2", {"0-9": seeds})
    return left, right


def taken(url, target, tmp_path):
    """What a merge from the store adds to a ledger."""
    return merge(target, Store(url).fetch(tmp_path / f"fetched-{next(NUMBERS)}", target))


def held(root):
    """What a ledger holds, as merging compares it, with looks and what links say."""
    ledger = Ledger(root, writable=False)
    account = ledger.account()
    return *merged(root), {name: ledger.looks(name) for name in ledger.looked_at()}, account.signed, account.missing


def test_hosts_that_see_no_common_folder_get_what_a_merge_of_their_ledgers_gives(two, tmp_path, url):
    for ledger in two:
        Store(url).push(ledger)
    taken(url, tmp_path / "third", tmp_path)
    merge(tmp_path / "merged", [ledger.root for ledger in two])
    assert held(tmp_path / "third") == held(tmp_path / "merged")
    # What is there already travels no more, in neither direction.
    assert [Store(url).push(ledger) for ledger in two] == [Pushed(), Pushed()]
    assert taken(url, tmp_path / "third", tmp_path) == Merged(0, 0, 0)
    # A host that takes in what others have, and gives all that it then has.
    taken(url, two[0].root, tmp_path)
    assert held(two[0].root)[:5] == held(tmp_path / "merged")[:5]
    assert Store(url).push(Ledger(two[0].root)).runs == 0


def test_a_cell_that_failed_somewhere_is_the_one_that_was_measured_elsewhere(two, tmp_path, url):
    left, right = two
    (key,) = left.cell_keys()
    right.save_cell(failed_cell(left.cell(key).cell), key)
    for ledger in (right, left):
        Store(url).push(ledger)
    taken(url, tmp_path / "third", tmp_path)
    assert Ledger(tmp_path / "third").cell(key).status == "ok"


def test_a_push_that_was_killed_anywhere_left_whole_runs(two, tmp_path, url, monkeypatch):
    put, left = Store._put, two[0]
    steps = 0

    def dying(self, name, content):
        nonlocal steps
        if not steps:
            raise KeyboardInterrupt
        steps -= 1
        return put(self, name, content)

    for number in range(1, 100):
        place, steps = f"{url}/{number}", number
        monkeypatch.setattr(Store, "_put", dying)
        try:
            Store(place).push(left)
        except KeyboardInterrupt:
            monkeypatch.setattr(Store, "_put", put)
            # Weights come before the record that names them: what can be taken is whole.
            taken(place, tmp_path / f"after-{number}", tmp_path)
            Store(place).push(left)
            taken(place, tmp_path / f"after-{number}", tmp_path)
            assert held(tmp_path / f"after-{number}") == held(left.root)
        else:
            break
    assert number > 6


def test_what_two_hosts_say_of_one_run_must_agree(tmp_path, url):
    ours, again, theirs = (Ledger(tmp_path / name) for name in ("ours", "again", "theirs"))
    run = run_record()
    ours.commit(run, WEIGHTS)
    again.commit(changed(run, seconds=9.0), WEIGHTS)
    theirs.commit(changed(run, train_loss=[9.0]), WEIGHTS)
    assert [Store(url).push(ledger).runs for ledger in (ours, again)] == [1, 1]
    taken(url, tmp_path / "third", tmp_path)
    third = Ledger(tmp_path / "third", writable=False)
    assert next(third.runs()).train_loss == run.train_loss
    # The other one was left out, not removed.
    assert not third.account().missing
    Store(url).push(theirs)
    for target in ("third", "fourth"):
        with pytest.raises(ConfigError, match="differ in 'train_loss'"):
            taken(url, tmp_path / target, tmp_path)


def test_of_two_who_push_one_run_at_any_moment_one_wins_and_nothing_is_torn(tmp_path, url, monkeypatch):
    """The second one pushes all that it has between two puts of the first, whichever."""
    put, run = Store._put, run_record()
    one, other = Ledger(tmp_path / "one"), Ledger(tmp_path / "other")
    one.commit(run, WEIGHTS)
    other.commit(changed(run, seconds=run.seconds + 1), WEIGHTS)
    for moment in range(4):
        place, seen, between = f"{url}/{moment}", [], []

        def putting(self, name, content, moment=moment, place=place, seen=seen, between=between):
            if len(seen) == moment and not between:
                between.append(None)
                between.append(Store(place).push(other))
            written = put(self, name, content)
            if len(between) != 1:
                seen.append((name.partition("/")[0], written))
            return written

        monkeypatch.setattr(Store, "_put", putting)
        pushed = Store(place).push(one)
        monkeypatch.setattr(Store, "_put", put)
        assert len(seen) == 3 and pushed.runs == 1
        if moment < 3:
            # Whoever comes second writes what the first did not: its own record, as it was signed.
            written = dict(seen)
            assert bool(written["weights"]) == (moment == 2) and written["runs"] > 0
            assert between[1].runs == 1
        else:
            Store(place).push(other)
        names = sorted(Store(place)._names())
        assert [name.partition("/")[0] for name in names] == ["ledger.json", "runs", "runs", "weights"]
        assert taken(place, tmp_path / f"third-{moment}", tmp_path).runs == 1
        third = Ledger(tmp_path / f"third-{moment}", writable=False)
        assert [third.weights_file(found) for found in third.runs()] == [WEIGHTS]
        assert not third.damaged and not third.account().missing


def test_weights_that_another_host_pushed_do_not_travel_again(tmp_path, url, monkeypatch):
    run = run_record()
    for name, seconds in (("one", 1.0), ("other", 2.0)):
        Ledger(tmp_path / name).commit(changed(run, seconds=seconds), WEIGHTS)
    Store(url).push(Ledger(tmp_path / "one"))
    monkeypatch.setattr(Ledger, "weights_file", lambda *_: pytest.fail("weights are read for nothing"))
    assert Store(url).push(Ledger(tmp_path / "other")).runs == 1


def test_a_file_that_a_kill_left_half_written_is_no_object(two, tmp_path, monkeypatch):
    place = f"file://{tmp_path / 'bucket'}"
    write = AbstractFileSystem.pipe_file

    def torn(self, path, value, **options):
        write(self, path, value[: len(value) // 2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(AbstractFileSystem, "pipe_file", torn)
    with pytest.raises(KeyboardInterrupt):
        Store(place).push(two[0])
    monkeypatch.setattr(AbstractFileSystem, "pipe_file", write)
    Store(place).push(two[0])
    taken(place, tmp_path / "third", tmp_path)
    assert held(tmp_path / "third") == held(two[0].root)


def test_a_put_that_somebody_was_faster_with_is_no_second_one(two, tmp_path, url, monkeypatch):
    # Both looked at the store before either wrote.
    monkeypatch.setattr(Store, "_names", lambda self: set())
    assert Store(url).push(two[0]).size > 0
    assert Store(url).push(two[0]).size == 0


def test_what_a_stranger_put_there_leads_nowhere_and_is_told_in_one_line(two, tmp_path, monkeypatch):
    place = f"memory://strange-{next(NUMBERS)}"
    Store(place).push(two[0])
    system = Store(place)._system
    root = Store(place)._root
    names = sorted(Store(place)._names())
    nothing = hashlib.sha256(b"{}").hexdigest()
    for name in ("runs/../../out.json", "runs/x/y.json", *(f"{one}/{nothing}.json" for one in ("runs/..", "else/x"))):
        system.pipe_file(f"{root}/{name}", b"{}")
    taken(place, tmp_path / "fine", tmp_path)
    assert held(tmp_path / "fine") == held(two[0].root)
    weights = next(name for name in names if name.startswith("weights/"))
    run, cell = (next(name for name in names if name.startswith(kind)) for kind in ("runs/", "cells/"))
    cases = {
        "the weights changed": (weights, b"other"),
        "is missing; push it again": (weights, None),
        "it changed after it was written; remove": (run, b"{}"),
        "it changed after it was written": (cell, b"{}"),
        "schema version 99": ("ledger.json", b'{"schema_version": 99}'),
        "ledger.json: damaged": ("ledger.json", b"["),
        "is no ledger; fill it": ("ledger.json", None),
    }
    for number, (said, (name, content)) in enumerate(cases.items()):
        before = system.cat_file(f"{root}/{name}")
        if content is None:
            system.rm_file(f"{root}/{name}")
        else:
            system.pipe_file(f"{root}/{name}", content)
        with pytest.raises(AuditError, match=said) as found:
            taken(place, tmp_path / f"target-{number}", tmp_path)
        assert "\n" not in str(found.value)
        assert not list((tmp_path / f"target-{number}").glob("runs/*"))
        system.pipe_file(f"{root}/{name}", before)
    # A record whose name says what it holds, and which would have weights read from elsewhere.
    path = f"runs/{run.split('/')[1]}"
    record = b'{"weights_digest": "../../x"}'
    system.pipe_file(f"{root}/{path}/{hashlib.sha256(record).hexdigest()}.json", record)
    system.rm_file(f"{root}/{run}")
    with pytest.raises(DamagedError, match="damaged, or not a record"):
        taken(place, tmp_path / "elsewhere", tmp_path)
    Store(place).push(two[0])
    system.rm_file(f"{root}/{path}/{hashlib.sha256(record).hexdigest()}.json")
    monkeypatch.setattr(objects, "MOST_OF_WEIGHTS", 3)
    with pytest.raises(DamagedError, match="is larger than"):
        taken(place, tmp_path / "large", tmp_path)


def test_a_store_that_refuses_or_is_not_there_is_one_line(two, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="Protocol not known: none"):
        Store("none://bucket")

    def denied(self, *_, **__):
        raise RuntimeError("An error occurred (AccessDenied)\nwhen calling PutObject")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", denied)
    with pytest.raises(
        StorageError, match=r"^memory://denied: RuntimeError: An error occurred \(AccessDenied\) when calling"
    ):
        Store("memory://denied").push(two[0])


@pytest.fixture
def run(monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["pruneaudit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, "".join(capsys.readouterr())

    return command


def test_commands_push_and_merge(run, two, tmp_path):
    url = f"memory://commands-{next(NUMBERS)}/ledger"
    code, text = run("push", two[0].root, url)
    assert (code or 0, text.splitlines()[0].split(":")[0]) == (0, "added to memory")
    code, text = run("merge", url, two[1].root, "--to", tmp_path / "all")
    assert not code, text
    assert Ledger(tmp_path / "all").finished() == two[0].finished() | two[1].finished()
    for arguments, said in (
        (("push", two[0].root, tmp_path / "x"), "is no URL of object storage"),
        (("merge", url, two[0].root), "`pruneaudit push LEDGER"),
        (("merge", two[0].root, "memory://nothing-here"), "is no ledger; fill it"),
    ):
        code, text = run(*arguments)
        assert code == 2
        assert said in text.replace("\n", " ")
