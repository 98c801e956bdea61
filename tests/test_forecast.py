"""How many seeds a plan of verdicts will take: played through with seeds like those that are known."""

import pytest
from test_rounds import EVEN, family, records

from pruneaudit.audit.forecast import cells_expected, forecast
from pruneaudit.workloads.metrics import ACCURACY

NOTHING = records()


def told(pilot, here=NOTHING, **options):
    return {one.comparison.right: one for one in forecast(family(**options), here, ACCURACY, pilot)}


def test_large_differences_take_few_seeds_and_small_ones_all():
    pilot = records(l1=[60.0, 61.0, 60.5], random=[61.0, 60.0, 60.6], tpp=[40.0, 41.5, 40.0])
    found = told(pilot)
    assert found["tpp"].seeds < 9 and found["tpp"].decided == 1.0
    assert found["random"].seeds > 11 and found["random"].decided < 0.3
    assert (found["tpp"].pilot, found["tpp"].mean) == (3, pytest.approx(20.0))
    # What is trained are arms: l1 stands in both.
    cells = cells_expected(list(found.values()))
    seeds = {name: sum(cell.method == name for cell in cells) for name in ("l1", "random", "tpp")}
    assert seeds["l1"] == seeds["random"] == 12 and seeds["tpp"] <= 9


def test_steady_equality_is_expected_to_be_proven():
    pilot = records(l1=[60.0, 60.1, 60.0], random=[60.1, 60.1, 60.0], tpp=[60.0, 60.0, 60.1])
    assert {one.decided for one in told(pilot).values()} == {1.0}
    assert max(one.seeds for one in told(pilot).values()) <= 8


def test_without_a_pilot_as_many_seeds_are_counted_as_often_are_taken_and_nothing_is_promised():
    found = told(records(l1=[60.0, 61.0], random=[50.0, 50.0], tpp=[1.0]))
    assert {(one.decided, one.mean) for one in found.values()} == {(None, None)}
    assert {7 < one.seeds < 12 for one in found.values()} == {True}


def test_what_is_there_is_not_expected_but_known():
    # Decided after seven seeds; the pilot, which is the ledger itself, would have said more or less.
    here = records(l1=[60.0] * 12, random=EVEN, tpp=[10.0] * 12)
    found = told(None, here)
    assert (found["tpp"].seeds, found["tpp"].decided) == (7, 1.0)
    assert (found["random"].seeds, found["random"].decided) == (7, 1.0)
    failed = records(l1=[60.0, None], random=[50.0] * 3, tpp=[50.0] * 3)
    assert told(records(l1=[60.0] * 3, random=EVEN, tpp=EVEN), failed)["tpp"].decided == 0.0
