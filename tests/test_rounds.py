"""Plans of verdicts: written before anything trains, kept by everybody, and worked through seed by seed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from builders import evidence, store
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.audit.rounds import Family, read, register
from pruneaudit.audit.sequential import FUTILITY, Plan, Stop
from pruneaudit.catalog.cells import Arm, Comparison
from pruneaudit.errors import ConfigError, DamagedError
from pruneaudit.ledger.merging import merge
from pruneaudit.ledger.store import Ledger, sealed
from pruneaudit.workloads.metrics import ACCURACY

WHERE = "lenet5-digits", "s3.2"


def family(seeds=12, pairs=(("l1", "random", 0.5), ("l1", "tpp", 0.5)), futility=None, **more):
    plan = Plan(seeds=seeds, comparisons=len(pairs), margin=0.5, futility=futility)
    return Family(workload=WHERE[0], protocol=WHERE[1], labels=(), pairs=pairs, plan=plan, **more)


def records(**values):
    """Gives the record of a cell; None is a seed that failed, and what is not given is not measured."""

    def record_of(cell):
        known = values.get(cell.method, ())
        return SimpleNamespace(value=known[cell.seed]) if cell.seed < len(known) else None

    return record_of


EVEN = [50.0, 53.0] * 6


def test_only_arms_of_open_comparisons_take_the_next_seed():
    # l1 against tpp is plain after eight seeds; against random it never is.
    known = records(l1=[51.5] * 8, random=EVEN[:8], tpp=[10.0] * 8)
    standing = family().standing(known, ACCURACY)
    assert [stop.word for stop in standing.stops.values()] == [None, "better"]
    assert [(cell.method, cell.seed) for cell in standing.wanted()] == [("l1", 8), ("random", 8)]


def test_a_comparison_that_is_given_up_takes_no_further_seed():
    known = records(l1=[51.5] * 12, random=EVEN, tpp=[10.0] * 12)
    patient, hasty = (family(futility=futility).standing(known, ACCURACY) for futility in (None, FUTILITY))
    even = Comparison(*WHERE, "l1", "random", 0.5, ())
    assert patient.of(even) == Stop("indeterminate", 12)
    assert hasty.of(even) == Stop("indeterminate", family().plan.first_difference, is_given_up=True)
    seven = records(l1=[51.5] * 7, random=EVEN[:7], tpp=[10.0] * 7)
    wanted = [family(futility=futility).standing(seven, ACCURACY).wanted() for futility in (None, FUTILITY)]
    assert [bool(cells) for cells in wanted] == [True, False]


def test_expected_are_few_seeds_of_what_is_plain_and_all_of_what_is_not():
    pairs = (("l1", "random", 0.5), ("l1", "tpp", 0.5))
    known = records(l1=[53.5, 50.0] * 4, random=[50.0, 50.5] * 4, tpp=[10.0, 10.5] * 4)
    standing = family(seeds=40, pairs=pairs).standing(known, ACCURACY)
    assert {stop.word for stop in standing.stops.values()} == {None}
    open_one, plain = map(standing.expected, standing.family.comparisons)
    assert plain <= 10 < open_one <= 40
    # Round by round, the wanted ones first; the plain one's arm takes no more rounds than it may need.
    wanted, *later = standing.likely()
    assert wanted == dict.fromkeys(standing.wanted(), 1.0)
    assert [{cell.seed for cell in cells} for cells in later] == [{seed} for seed in range(9, 9 + len(later))]
    assert "tpp" not in {cell.method for cell in later[-1]}
    # What one arm takes of them is what its comparison is expected to take.
    taken = sum(chance for cells in later for cell, chance in cells.items() if cell.method == "random")
    assert 9 + taken == pytest.approx(open_one, abs=0.5)
    # Of nothing something is expected, more of who looks longer and gives nothing up.
    plans = ((12, FUTILITY), (12, None), (99, None))
    unknown = [family(seeds, futility=futility).standing(records(), ACCURACY) for seeds, futility in plans]
    first, second, third = (standing.expected(standing.family.comparisons[0]) for standing in unknown)
    assert 7 <= first <= second < third < 50
    assert family(5).standing(records(), ACCURACY).expected(family(5).comparisons[0]) == 5


def test_rounds_wait_for_every_open_comparison():
    standing = family().standing(records(l1=EVEN, random=EVEN[:3], tpp=[10.0] * 9), ACCURACY)
    assert {stop.looks for stop in standing.stops.values()} == {3}
    # In a round both take their seeds: what is there already is not asked for again by whoever measures.
    assert {cell.method for cell in standing.wanted()} == {"l1", "random", "tpp"}


def test_seeds_before_which_nothing_can_stop_are_wanted_together():
    none = family().standing(records(), ACCURACY)
    assert [cell.seed for cell in none.wanted()] == sorted(3 * list(range(7))), "the first seeds come first"
    assert none.wanted() == family().certain
    # Whatever comes out: equal to the bit, or as far apart as can be.
    for known in (records(l1=EVEN[:6], random=EVEN[:6], tpp=EVEN[:6]), records(l1=[9.0] * 6, random=EVEN, tpp=EVEN)):
        standing = family().standing(known, ACCURACY)
        assert {stop.word for stop in standing.stops.values()} == {None}
        assert {cell.seed for cell in standing.wanted()} == {6}
    # So few seeds decide nothing: all of them are trained.
    few = family(seeds=6, pairs=tuple(("l1", f"m{number}", 0.5) for number in range(9)))
    assert {cell.seed for cell in few.certain} == set(range(6))


def test_ahead_are_seeds_of_what_will_probably_stay_open():
    # After six seeds the plain one needs two more, the other more than there are.
    standing = family().standing(records(l1=[51.5] * 7, random=EVEN[:7], tpp=[10.0] * 7), ACCURACY)
    assert [stop.word for stop in standing.stops.values()] == [None, "better"]
    assert {cell.seed for cell in standing.wanted()} == {7}
    assert [(cell.method, cell.seed) for cell in standing.ahead(1)] == [("l1", 8), ("random", 8)]
    assert {cell.seed for cell in standing.ahead(2)} == {8, 9} and standing.ahead(0) == []
    # What the next seed will probably decide takes no seed after it.
    nearly = family().standing(records(l1=[51.5] * 6, random=[53.0, 52.5] * 3, tpp=[10.0] * 6), ACCURACY)
    assert {cell.seed for cell in nearly.wanted()} == {6}
    assert {cell.method for cell in nearly.ahead(1)} <= {"l1", "random"}
    assert family().standing(records(), ACCURACY).ahead(2) == [], "nothing is known of them"


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 12), st.integers(0, 3), st.integers(0, 99))
def test_nothing_is_trained_ahead_beyond_the_plan_or_what_was_asked_for(seen, ahead, draw):
    values = {
        name: np.random.default_rng((draw, place)).normal(50, 2, seen).tolist() for place, name in enumerate("abc")
    }
    planned = family(pairs=(("a", "b", 0.5), ("a", "c", 0.5)))
    standing = planned.standing(records(**values), ACCURACY)
    wanted, later = standing.wanted(), standing.ahead(ahead)
    assert all(cell.seed < planned.plan.seeds for cell in [*wanted, *later])
    assert len({cell.seed for cell in later}) <= ahead
    # A seed is trained ahead of nothing but a seed that is wanted: where all is decided, nothing is.
    assert min((cell.seed for cell in later), default=99) > max((cell.seed for cell in wanted), default=-1)
    assert bool(later) <= bool(wanted)


def test_what_was_trained_beyond_a_stop_is_not_looked_at():
    long = family().standing(records(l1=[51.5] * 12, random=EVEN, tpp=[10.0] * 7 + [99.0] * 5), ACCURACY)
    short = family().standing(records(l1=[51.5] * 12, random=EVEN, tpp=[10.0] * 7), ACCURACY)
    comparison = Comparison(*WHERE, "l1", "tpp", 0.5, (0, 1, 2))
    assert long.of(comparison) == short.of(comparison)
    assert long.of(comparison).looks == 7


def test_subjects_over_the_seeds_that_they_took():
    standing = family().standing(records(l1=[51.5] * 12, random=EVEN, tpp=[10.0] * 12), ACCURACY)
    seeds = {
        name: standing.over_seeds_taken(Arm(*WHERE, name, 0.5, (0,))).seeds
        for name in ("l1", "random", "tpp", "scratch")
    }
    assert {name: len(known) for name, known in seeds.items()} == {"l1": 12, "random": 12, "tpp": 7, "scratch": 6}
    # Of an open one with the seed that it lacks: it is incomplete, and says so.
    half = family().standing(records(l1=[51.5] * 9, random=EVEN[:9], tpp=[10.0] * 9), ACCURACY)
    assert len(half.over_seeds_taken(Comparison(*WHERE, "l1", "random", 0.5, ())).seeds) == 10
    assert standing.of(Comparison(*WHERE, "random", "tpp", 0.5, ())) is None


class TestRegistered:
    def test_a_plan_is_written_once_and_found_again(self, tmp_path):
        ledger = Ledger(tmp_path / "ledger")
        first = register(ledger, family(), records(l1=[1.0] * 3, random=[1.0] * 3), ACCURACY)
        assert first.seen == 3
        # Resumed, when all is there: still the plan of the first day.
        assert register(ledger, family(), records(l1=EVEN, random=EVEN, tpp=EVEN), ACCURACY) == first
        assert ledger.planned(Family) == [first]

    def test_a_plan_of_an_older_version_keeps_its_rules(self, tmp_path):
        ledger = Ledger(tmp_path / "ledger")
        old = register(ledger, family(), records(), ACCURACY)
        (path,) = (ledger.root / "planned").iterdir()
        whole = json.loads(path.read_text())
        del whole["plan"]["futility"], whole["link"], whole["digest"]
        path.write_text(json.dumps(whole))
        (there,) = read(Ledger(ledger.root)).values()
        assert there == old and there.plan.futility is None
        today = family(futility=FUTILITY)
        assert register(ledger, today.with_rules_of(there), records(), ACCURACY) == old
        with pytest.raises(ConfigError, match="holds another plan"):
            register(ledger, family(20, futility=FUTILITY).with_rules_of(there), records(), ACCURACY)

    @pytest.mark.parametrize("other", [family(20), family(pairs=(("l1", "random", 0.5),))])
    def test_another_plan_of_the_same_table_is_refused(self, tmp_path, other):
        ledger = Ledger(tmp_path / "ledger")
        register(ledger, family(), records(), ACCURACY)
        with pytest.raises(ConfigError, match="holds another plan, 12 seeds at most for 2 comparisons"):
            register(ledger, other, records(), ACCURACY)

    def test_what_was_looked_at_cannot_be_planned(self, tmp_path):
        ledger = Ledger(tmp_path / "ledger")
        with pytest.raises(ConfigError, match="holds 6 seeds trained without a plan"):
            register(ledger, family(), records(l1=EVEN[:6], random=EVEN[:6]), ACCURACY)
        assert ledger.planned(Family) == []

    def test_merged_ledgers_keep_one_plan(self, tmp_path):
        for name in ("one", "two"):
            register(Ledger(tmp_path / name), family(), records(), ACCURACY)
        merge(tmp_path / "both", [tmp_path / "one", tmp_path / "two"])
        assert Ledger(tmp_path / "both").planned(Family) == [family()]
        register(Ledger(tmp_path / "three"), family(20), records(), ACCURACY)
        with pytest.raises(ConfigError, match="planned these comparisons differently"):
            merge(tmp_path / "both", [tmp_path / "three"])

    def test_merged_ledgers_know_all_looks(self, tmp_path):
        for name, found in (("one", {"a-b": [6]}), ("two", {"a-b": [8, 6], "c-d": [7]})):
            Ledger(tmp_path / name).remember_looks("table", found)
        merge(tmp_path / "both", [tmp_path / "one", tmp_path / "two"])
        assert Ledger(tmp_path / "both").looks("table") == {"a-b": [6, 8], "c-d": [7]}
        # A ledger that nobody may write to can be judged again as before.
        Ledger(tmp_path / "both", writable=False).remember_looks("table", {"a-b": [6]})
        (tmp_path / "both" / "looks" / "table.json").write_text('{"a-b": ["six"]}')
        with pytest.raises(DamagedError, match="not a list of looks"):
            Ledger(tmp_path / "both").looks("table")

    def test_a_plan_is_signed(self, tmp_path):
        """Whoever makes its margin what suits the results is told, as of a record."""
        ledger = Ledger(tmp_path / "ledger")
        register(ledger, family(), records(), ACCURACY)
        assert Ledger(ledger.root).account().lines() == []
        (path,) = (ledger.root / "planned").iterdir()
        whole = json.loads(path.read_text())
        edited = whole | {"plan": whole["plan"] | {"margin": 5.0}}
        link, _ = edited.pop("link"), edited.pop("digest")
        for content, said in ((edited | {"digest": whole["digest"]}, "damaged"), (sealed(edited), "edited")):
            path.write_text(json.dumps(content | {"link": link}))
            for look in (lambda: Ledger(ledger.root).planned(Family), lambda: merge(tmp_path / "both", [ledger.root])):
                with pytest.raises(DamagedError, match=f"{said}.*; take it from a copy") as caught:
                    look()
                assert "\n" not in str(caught.value)
        # Without a signature it is read, as those of older versions are, and named.
        path.write_text(json.dumps(edited))
        again = Ledger(ledger.root)
        assert again.planned(Family)[0].plan.margin == 5.0
        (line,) = again.account().lines()
        assert line.startswith("1 record(s) are not signed") and line.endswith(f": plan {path.stem}")

    def test_a_plan_that_was_removed_leaves_a_gap(self, tmp_path):
        ledger = Ledger(tmp_path / "ledger")
        register(ledger, family(), records(), ACCURACY)
        store(ledger, evidence())
        (path,) = (ledger.root / "planned").iterdir()
        path.unlink()
        (line,) = Ledger(ledger.root).account().lines()
        assert line.startswith("1 record(s) that were written to this ledger are not there any more")

    def test_a_merge_leaves_the_signature_of_a_plan_and_takes_none_for_removed(self, tmp_path):
        for name in ("one", "two"):
            ledger = Ledger(tmp_path / name)
            register(ledger, family(), records(), ACCURACY)
            store(ledger, evidence())
        merge(tmp_path / "both", [tmp_path / "one", tmp_path / "two"])
        assert Ledger(tmp_path / "both").account().lines() == []
        (one,), (both,) = ((tmp_path / name / "planned").iterdir() for name in ("one", "both"))
        assert one.read_bytes() == both.read_bytes()

    def test_a_damaged_plan_is_told_and_not_replaced(self, tmp_path):
        ledger = Ledger(tmp_path / "ledger")
        register(ledger, family(), records(), ACCURACY)
        (path,) = (tmp_path / "ledger" / "planned").iterdir()
        path.write_text("{}")
        with pytest.raises(DamagedError, match="not a plan"):
            register(ledger, family(), records(), ACCURACY)
        assert path.read_text() == "{}"
