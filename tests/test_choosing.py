"""Which backend trains a workload where nobody says it: chosen once, from what is there or what is measured."""

import json
from dataclasses import replace

import pytest

from pruneaudit.campaign import choosing
from pruneaudit.campaign.choosing import CANDIDATES, Choosing
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError, DamagedError
from pruneaudit.ledger.choices import Choice, choice_name, made_by
from pruneaudit.ledger.progress import Watcher
from pruneaudit.ledger.store import Ledger
from pruneaudit.plugin.live import bars

CATALOG = Catalog()
LENET, RESNET = (CATALOG.workload(name) for name in ("lenet5-digits", "resnet20-digits"))
FULL = ("full", "fp32", "native")
AUTO = ("--audit-backend", "auto")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Seconds of all backends at all ratios, without a process that measures them; counts how often it is asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(choosing, "_has_numba", lambda: True)
    monkeypatch.setattr(choosing, "_machine", lambda: {"processor": "one"})
    jobs = []

    def answer(**seconds):
        def asked(module, job, patience):
            jobs.append(job)
            times = {"tiled": None, "torch": 1.0, **seconds}
            return [
                {"backend": backend, "ratio": ratio, "seconds": times[backend], "note": ""}
                for ratio in job["ratios"]
                for backend in CANDIDATES
            ]

        monkeypatch.setattr(choosing, "asked", asked)
        return jobs

    return answer


def chooser(folder, **settings):
    given = {"budget": "full", "precision": "fp32", "arithmetic": "native", "device": "cpu", **settings}
    return Choosing(CATALOG, Ledger(folder), **given)


@pytest.mark.parametrize(
    ("seconds", "backend"),
    [
        ({"tiled": 0.5}, "tiled"),
        ({"tiled": 0.95}, "torch"),
        ({}, "torch"),
    ],
)
def test_the_fastest_is_chosen_where_it_is_so_by_more_than_a_tenth(measured, tmp_path, seconds, backend):
    measured(**seconds)
    choice = chooser(tmp_path / "ledger").settle(LENET)
    assert choice.backend == backend
    if backend != "torch":
        gain = 1 / seconds[backend]
        assert choice.why == f"measured here, {gain:.1f} times as fast as torch (dense and at ratio 0.9)"


def test_where_nothing_else_was_timed_the_choice_says_why(measured, tmp_path, monkeypatch):
    measured()
    notes = {"tiled": "not timed, since a step of torch's takes 70 seconds here", "torch": ""}
    answered = choosing.asked
    monkeypatch.setattr(
        choosing, "asked", lambda *job: [{**row, "note": notes[row["backend"]]} for row in answered(*job)]
    )
    choice = chooser(tmp_path / "ledger").settle(LENET)
    assert (choice.backend, choice.why) == ("torch", notes["tiled"])


def test_a_ledger_keeps_its_choice_whatever_is_fast_later(measured, tmp_path):
    jobs = measured(tiled=0.5)
    first = chooser(tmp_path / "ledger")
    assert first(LENET) == "torch", "nothing is chosen, and nothing there"
    first.settle(LENET)
    assert first(LENET) == "tiled"
    measured()
    (tmp_path / "cache").rename(tmp_path / "lost")
    later = chooser(tmp_path / "ledger")
    assert later.settle(LENET) == first.settle(LENET) and later(LENET) == "tiled" and len(jobs) == 1
    # A session that only judges asks, and measures nothing.
    judging = replace(later, ledger=Ledger(tmp_path / "ledger", writable=False))
    assert judging(LENET) == "tiled" and judging(RESNET) == "torch" and len(jobs) == 1
    # Other settings are other tables.
    assert chooser(tmp_path / "ledger", precision="fp64").settle(LENET).backend == "torch"


@pytest.mark.parametrize(("arithmetic", "what"), [("native", "measuring"), ("portable", "asking")])
def test_who_watches_is_told_while_backends_are_measured(measured, tmp_path, monkeypatch, arithmetic, what):
    measured(tiled=0.5)
    answer, seen = choosing.asked, []

    def asked(*job):
        state = Watcher(Ledger(tmp_path / "ledger", writable=False)).look()
        seen.append((state.line(), [bar.plain for bar in text_of(bars(state, 80, 4))]))
        return answer(*job)

    monkeypatch.setattr(choosing, "asked", asked)
    chooser(tmp_path / "ledger", arithmetic=arithmetic).settle(LENET)
    told = f"lenet5-digits: {what} backends"
    assert seen[0][0] == f"now {told}" and told in seen[0][1] and "prunes" not in seen[0][1]
    assert not Ledger(tmp_path / "ledger").progress()
    # Who only plans writes nothing.
    (tmp_path / "cache").rename(tmp_path / "lost")
    chooser(tmp_path / "ledger", arithmetic=arithmetic).settle(RESNET, keeps=False)
    assert seen[1][0] == ""


def text_of(group):
    """All words of some bars."""
    return [
        cell
        for table in group.renderables
        for column in table.columns
        for cell in column.cells
        if hasattr(cell, "plain")
    ]


def test_a_measurement_is_kept_for_other_ledgers_of_this_machine(measured, tmp_path, monkeypatch):
    jobs = measured(tiled=0.5)
    for name in ("one", "two"):
        assert chooser(tmp_path / name).settle(LENET).backend == "tiled"
    assert len(jobs) == 1
    monkeypatch.setattr(choosing, "_machine", lambda: {"processor": "two"})
    chooser(tmp_path / "three").settle(LENET)
    chooser(tmp_path / "three").settle(RESNET)
    assert [job["workload"] for job in jobs] == ["lenet5-digits", "lenet5-digits", "resnet20-digits"]


def test_a_torn_measurement_is_taken_again(measured, tmp_path):
    jobs = measured(tiled=0.5)
    chooser(tmp_path / "one").settle(LENET)
    (kept,) = (tmp_path / "cache").rglob("*.json")
    for content in ("{", "[]", "[1]", "null", json.dumps(json.loads(kept.read_text())[:-1])):
        kept.write_text(content)
        assert chooser(tmp_path / f"two {content[:9]}").settle(LENET).backend == "tiled"
    assert len(jobs) == 6


def test_a_measurement_that_fails_leaves_torch_and_is_not_kept(measured, tmp_path, monkeypatch):
    measured()
    monkeypatch.setattr(choosing, "asked", lambda *job: [])
    choice = chooser(tmp_path / "ledger").settle(LENET)
    assert choice == Choice(backend="torch", why="nothing else could be measured")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"budget": "smoke"}, "a smoke budget is over"),
        ({"device": "cuda"}, "on CUDA the others train runs together"),
        ({"precision": "bf16"}, "do not train in bf16"),
    ],
)
def test_where_nothing_can_be_gained_nothing_is_measured(measured, tmp_path, settings, why):
    jobs = measured(tiled=0.1)
    choice = chooser(tmp_path / "ledger", **settings).settle(LENET)
    assert (choice.backend, len(jobs)) == ("torch", 0) and why in choice.why
    transformer = CATALOG.workload("vit-digits")
    assert "torch's alone" in chooser(tmp_path / "ledger").settle(transformer).why and not jobs


def test_portable_numbers_do_not_depend_on_what_a_machine_is_fast_at(measured, tmp_path):
    for number, seconds in enumerate(({"tiled": 0.5}, {"tiled": 2.0}, {})):
        jobs = measured(**seconds)
        choice = chooser(tmp_path / str(number), arithmetic="portable").settle(LENET)
        assert choice.backend == ("tiled" if seconds else "torch")
        (tmp_path / "cache").rename(tmp_path / f"cache {number}")
    assert all(job["rounds"] == 0 and job["ratios"] == (None,) for job in jobs)


def test_runs_that_are_there_go_on_with_what_made_them(measured, tmp_path):
    jobs = measured(tiled=0.1)
    ledger = tmp_path / "ledger"
    (ledger / "runs" / f"lenet5-digits-pretrain-seed0-{7:016x}").mkdir(parents=True)
    assert chooser(ledger).settle(LENET).backend == "torch" and not jobs
    assert chooser(ledger, precision="fp64").settle(LENET).backend == "tiled", "others are another table"
    # A baseline counts as well: what is compared is trained by one backend.
    new = replace(chooser(tmp_path / "new"), baseline=Ledger(ledger, writable=False))
    assert new.settle(LENET).backend == "torch" and len(jobs) == 1


def test_what_made_the_runs_and_trains_no_more_is_judged_and_not_replaced_by_another(measured, tmp_path):
    jobs, ledger = measured(tiled=0.1), tmp_path / "ledger"
    (ledger / "runs" / f"lenet5-digits-pretrain-seed0-compiled-{7:016x}").mkdir(parents=True)
    choose = chooser(ledger)
    assert choose.known("lenet5-digits").backend == "compiled" and choose(LENET) == "compiled"
    line = "lenet5-digits: its runs are there by compiled, which trains no more: judge them .* with --audit-from"
    with pytest.raises(ConfigError, match=line):
        choose.settle(LENET)
    # What still trains comes before.
    (ledger / "runs" / f"lenet5-digits-pretrain-seed0-tiled-{8:016x}").mkdir(parents=True)
    assert chooser(ledger).settle(LENET).backend == "tiled" and not jobs


def test_backends_are_read_off_names_of_runs():
    names = [
        f"lenet5-digits-pretrain-seed0-{1:016x}",
        f"lenet5-digits-retrain-l1-r0.5-seed12-compiled-{2:016x}",
        f"lenet5-digits-prune-seed3-seed0-smoke-fp64-tiled-portable-{3:016x}",
        f"lenet5-digits-mini-scratch-r0.5-seed0-tiled-{4:016x}",
        "stray",
    ]
    assert made_by(names, "lenet5-digits", *FULL) == "torch", "before all others"
    assert made_by(names[1:], "lenet5-digits", *FULL) == "compiled"
    assert made_by(names, "lenet5-digits", "smoke", "fp64", "portable") == "tiled"
    assert made_by(names, "lenet5-digits", "smoke", "fp64", "native") is None
    assert made_by(names, "lenet5-digits-mini", *FULL) == "tiled"
    assert choice_name("lenet5-digits", "smoke", "fp64", "portable") == "lenet5-digits-smoke-fp64-portable"


def test_an_edited_choice_is_refused_in_one_line(measured, tmp_path):
    measured(tiled=0.5)
    chooser(tmp_path / "ledger").settle(LENET)
    path = tmp_path / "ledger" / "backends" / "lenet5-digits.json"
    path.write_text(path.read_text().replace("tiled", "torch"))
    with pytest.raises(DamagedError, match=r"lenet5-digits\.json: damaged, or no choice of a backend; delete it, and"):
        chooser(tmp_path / "ledger").settle(LENET)


def test_a_choice_that_needs_numba_says_so_where_there_is_none(measured, tmp_path, monkeypatch):
    measured(tiled=0.5)
    chooser(tmp_path / "ledger").settle(LENET)
    monkeypatch.setattr(choosing, "_has_numba", lambda: False)
    with pytest.raises(ConfigError, match=r"has its runs by tiled, which needs Numba: pip install 'pruneaudit\[comp"):
        chooser(tmp_path / "ledger").settle(LENET)
    assert chooser(tmp_path / "new").settle(LENET).why.startswith("Numba is not installed")


def test_one_backend_stands_in_labels_keys_and_plans_of_a_workload(measured, tmp_path):
    measured(tiled=0.5)
    choose = chooser(tmp_path / "ledger")
    choose.settle(RESNET)
    chosen, named = Settings(backend=choose), Settings(backend="tiled")
    assert chosen.labels(RESNET) == named.labels(RESNET) == ("tiled",)
    assert chosen.labels(LENET) == () and chosen.backend_of(LENET) == "torch"


def test_another_process_measures_and_asks(monkeypatch, tmp_path, warm):
    pytest.importorskip("numba")
    # Starts at once.
    monkeypatch.setattr("sys.executable", warm)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = chooser(tmp_path / "ledger")._timed(LENET, (0.9,), 1)
    assert {row["backend"]: row["seconds"] > 0 for row in rows} == dict.fromkeys(CANDIDATES, True)
    rows = chooser(tmp_path / "ledger")._timed(RESNET, (None,), 0)
    assert {row["backend"]: row["seconds"] for row in rows} == {"tiled": 0, "torch": 0}
    rows = chooser(tmp_path / "ledger")._timed(CATALOG.workload("vit-digits"), (None,), 0)
    assert {row["backend"]: row["seconds"] for row in rows} == {"tiled": None, "torch": 0}
    assert "torch's loop alone does" in rows[0]["note"]


def test_a_session_says_what_it_chose_and_records_why(checkout):
    select = ("suite", "-k", "cell and lenet5-digits and s3.2 and seed0 and r0.5", "--audit-methods", "l1")
    first = checkout.pytest(*select, "--audit-budget", "smoke", *AUTO)
    assert first.code == 0, first.text
    assert "cpu fp32 auto" in first.text
    line = "lenet5-digits is trained by torch: a smoke budget is over before anything is compiled"
    assert line in first.lines
    kept = checkout.ledger / "backends" / "lenet5-digits-smoke.json"
    assert json.loads(kept.read_text())["backend"] == "torch"
    records = [json.loads(path.read_text()) for path in checkout.ledger.glob("runs/*/record.json")]
    assert records and all(record["environment"]["backend"] in line for record in records)
    before = kept.read_bytes()
    again = checkout.pytest(*select, "--audit-budget", "smoke", *AUTO, "--audit-from", str(checkout.ledger))
    assert again.code == 0 and line in again.lines, again.text
    assert kept.read_bytes() == before
