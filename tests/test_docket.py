"""The docket: which rules look at which arm or comparison, what counts, and the verdicts that follow."""

import itertools
from dataclasses import replace

import pytest
from builders import CATALOG, SEEDS, evidence, failed_cell, scored, store, table
from rogues.records import retrained, software, unwatched, with_cell, with_result, with_run

from pruneaudit.audit.catalogue import get_rule, required, rules
from pruneaudit.audit.docket import BASELINE, Docket
from pruneaudit.audit.evidence import Evidence, Table, measured
from pruneaudit.audit.rules import attribution, comparability, honesty, measurement
from pruneaudit.catalog.cells import Arm, Cell, Comparison
from pruneaudit.ledger.store import Ledger

WORKLOAD = "lenet5-digits"
ALL_PROTOCOLS = [*sorted(CATALOG.protocols), "xv-l1"]
BEHAVIOUR = {"F502", "F503", "F504", "F505", "F507", "F508", "F509", "F511"}
ANY_ARM = {"F313", "F501", "F512", "F601", "F602", "F605", "F606"}


class Shelf:
    """Runs by id, as a ledger gives them."""

    def __init__(self, arms):
        self.runs = {}
        for run in (run for arm in arms for run in arm.runs):
            assert self.runs.setdefault(run.run_id, run) == run, "two runs of one identity"

    def get(self, run_id):
        return self.runs[run_id]


class Cells:
    """Records by cell, and how often each was asked for."""

    def __init__(self, arms):
        self.records = {arm.cell.cell: arm.cell for arm in arms}
        self.asked = []

    def __call__(self, cell):
        self.asked.append(cell)
        return self.records.get(cell)


def docket(arms, known=None, **options):
    return Docket(CATALOG, Shelf(arms), known or Cells(arms), **options)


def arms(protocol="s3.2", seeds=SEEDS, **differences):
    """Fair arms over seeds, by default l1 two points ahead of tpp; ``l1=-1`` and so on say how far each is ahead."""
    return [
        scored(evidence(method, protocol, seed), 75.0 + points)
        for method, points in (differences or {"l1": 2, "tpp": 0}).items()
        for seed in seeds
    ]


def changed(found, method, change, seeds=SEEDS):
    """Arms of which one is changed at some seeds."""
    return [change(arm) if arm.cell.method == method and arm.cell.seed in seeds else arm for arm in found]


def pair(left="l1", right="tpp", protocol="s3.2", seeds=SEEDS, ratio=0.5):
    return Comparison(WORKLOAD, protocol, left, right, ratio, tuple(seeds))


def arm_of(method="l1", protocol="s3.2", seeds=SEEDS):
    return Arm(WORKLOAD, protocol, method, 0.5, tuple(seeds))


def by_rule(findings):
    known = {finding.rule: finding for finding in findings}
    assert len(known) == len(findings)
    return known


def judged(found, *comparisons, **options):
    """Verdicts in the order of the comparisons; by default of l1 against tpp."""
    comparisons = comparisons or (pair(),)
    verdicts = docket(found, **options).verdicts(comparisons)
    assert tuple(verdicts) == comparisons
    return list(verdicts.values()) if len(comparisons) > 1 else verdicts[comparisons[0]]


# Which rules look at what


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("l1", BEHAVIOUR | {"F315", "F513", "F514"}),
        ("tpp", BEHAVIOUR | {"F315", "F513", "F514"}),
        ("random", BEHAVIOUR | {"F315", "F510", "F513", "F514"}),
        ("random-uniform", BEHAVIOUR | {"F315", "F510", "F513", "F514"}),
        ("randomised-greedy", BEHAVIOUR | {"F315", "F513", "F514"}),
        ("scratch", {"F506"}),
        ("scratch-e", {"F506"}),
        ("unpruned", set()),
    ],
)
def test_rules_on_arms_look_at_the_right_ones(method, more):
    assert {rule.id for rule in docket([]).rules(arm_of(method))} == ANY_ARM | more


def test_rules_on_comparisons_wait_for_the_table():
    during, after = docket([]).rules(pair()), docket([], table=Table()).rules(pair())
    assert {rule.id for rule in during} == {
        known.id for known in rules().values() if known.scope != "arm" and not known.whole_table
    }
    assert {rule.id for rule in after} - {rule.id for rule in during} == {"F609", "F610", "F701", "F702"}
    assert {rule.scope for rule in after} == {"pair", "series"}


def test_a_fair_comparison_passes_every_rule_in_its_table():
    found = arms("s4.2")
    known = docket(found, table=table("s4.2", "l1", "tpp", SEEDS))
    assert {finding.verdict for finding in known.findings(pair(protocol="s4.2"))} == {"pass"}
    for method in ("l1", "tpp"):
        words = {finding.rule: finding.verdict for finding in known.findings(arm_of(method, "s4.2"))}
        # Neither tuned nor long enough for a slope.
        assert {rule for rule, word in words.items() if word == "not measured"} == {"F313", "F605", "F606"}
        assert set(words.values()) == {"pass", "not measured"}


@pytest.mark.parametrize("protocol", ALL_PROTOCOLS)
def test_the_protocol_says_what_is_required(protocol):
    needed = set(required(CATALOG.protocol(protocol)))
    known = docket([])
    # Nothing is measured: what is asked does not depend on it.
    seen = set()
    for subject in (
        pair(protocol=protocol),
        arm_of("l1", protocol),
        arm_of("random", protocol),
        arm_of("scratch", protocol),
    ):
        for finding in known.findings(subject):
            assert finding.required == (finding.rule in needed or get_rule(finding.rule).always)
            assert known.finding(subject, finding.rule) == finding
            seen.add(finding.rule)
    assert needed <= seen


def test_what_no_protocol_asks_is_judged_all_the_same():
    found = changed(arms("s1"), "tpp", lambda arm: with_result(arm, learning_rates=[(0.1, 6)]))
    known = docket(found)
    finding = by_rule(known.findings(pair(protocol="s1")))["F321"]
    assert (finding.verdict, finding.required, finding.holds) == ("fail", False, True)
    assert finding.measured == {"l1": "0.01×4, 0.001×2", "tpp": "0.1×6"}
    verdict = known.verdicts([pair(protocol="s1")])[pair(protocol="s1")]
    assert verdict.verdict == "better"
    # Not controlled: the rates, the grid of one that they make, and the last rate.
    assert verdict.uncontrolled == ("F312", "F321", "F604")


def test_the_same_difference_forbids_where_it_is_required():
    found = changed(arms(), "tpp", lambda arm: with_result(arm, learning_rates=[(0.1, 6)]))
    verdict = judged(found)
    assert (verdict.verdict, verdict.forbidden_by) == ("not comparable", ("F321",))
    assert verdict.uncontrolled == ("F312", "F604")


def test_findings_are_judged_once():
    found = arms()
    cells = Cells(found)
    known = docket(found, cells)
    first = known.findings(pair())
    assert known.findings(pair()) is first
    known.verdicts([pair()])
    known.verdicts([pair()])
    # The case of an arm serves its comparisons.
    assert len(cells.asked) == len(found)


def test_an_arm_is_read_once_for_all_of_its_comparisons():
    found = [evidence(name, seed=seed) for name in ("l1", "tpp", "random") for seed in SEEDS]
    cells = Cells(found)
    known = docket(found, cells)
    for left, right in itertools.combinations(("l1", "tpp", "random"), 2):
        known.findings(pair(left, right))
    assert len(cells.asked) == len(set(cells.asked)) == len(found)


def test_findings_carry_labels():
    known = docket(arms(), labels=("smoke",))
    assert {finding.labels for finding in known.findings(pair())} == {("smoke",)}
    assert known.verdicts([pair()])[pair()].labels == ("smoke",)


# What forbids a verdict


def test_a_fair_pair_with_enough_seeds_is_told_apart():
    verdict = judged(arms())
    assert (verdict.verdict, verdict.forbidden_by, verdict.waived) == ("better", (), {})
    assert verdict.difference.mean == pytest.approx(2) and verdict.difference.n == 7
    assert verdict.uncontrolled == ()
    assert verdict.difference.margin == CATALOG.protocol("s3.2").margin


def test_arms_may_come_in_any_order():
    verdict = judged(arms(), pair("tpp", "l1"))
    assert (verdict.verdict, verdict.arms) == ("worse", ("tpp", "l1"))


@pytest.mark.parametrize("method", ["l1", "tpp"])
@pytest.mark.parametrize(
    ("rule_id", "change"),
    [
        ("F501", lambda arm: with_result(arm, optimiser_steps=7)),
        ("F509", lambda arm: with_run(arm, "prune", conduct=arm.prune.conduct.model_copy(update={"replay": "other"}))),
        ("F601", lambda arm: with_cell(arm, accuracy=99.0)),
        ("F602", lambda arm: with_result(arm, macs_recounted=1)),
    ],
)
def test_a_rule_on_either_arm_forbids(method, rule_id, change):
    # At one seed of seven.
    found = changed(arms(), method, change, seeds=(4,))
    verdict = judged(found)
    assert (verdict.verdict, verdict.forbidden_by) == ("not comparable", (rule_id,))
    assert f"because of {rule_id};" in verdict.summary


@pytest.mark.parametrize("method", ["l1", "tpp"])
def test_a_method_that_nobody_watched_forbids(method):
    verdict = judged(changed(arms(), method, unwatched))
    assert (verdict.verdict, verdict.forbidden_by) == ("not comparable", tuple(sorted(BEHAVIOUR)))


def test_a_rule_on_arms_that_no_protocol_asks_is_silent_about_differences():
    rising = [50.0 + epoch for epoch in range(21)]
    found = arms()
    for method in ("l1", "tpp"):
        found = changed(found, method, lambda arm: scored(retrained(arm, rising), arm.cell.accuracy))
    known = docket(found)
    plateau = by_rule(known.findings(arm_of("l1")))["F606"]
    assert (plateau.verdict, plateau.required) == ("fail", False)
    verdict = known.verdicts([pair()])[pair()]
    assert (verdict.verdict, verdict.uncontrolled) == ("better", ())


@pytest.mark.parametrize("failed", [True, False])
def test_a_lost_seed_forbids(failed):
    found = arms()
    cells = Cells(found)
    lost = Cell(WORKLOAD, "s3.2", "tpp", 0.5, 3)
    if failed:
        cells.records[lost] = failed_cell(lost, "run failed: out of memory")
    else:
        del cells.records[lost]
    known = docket(found, cells)
    verdict = known.verdicts([pair()])[pair()]
    assert verdict.verdict == "not comparable" and "F607" in verdict.forbidden_by
    assert verdict.seeds == (0, 1, 2, 4, 5, 6) and verdict.difference.n == 6
    finding = by_rule(known.findings(pair()))["F607"]
    assert finding.verdict == ("fail" if failed else "incomplete")
    assert ("out of memory" if failed else "not measured") in finding.note
    # Every rule that looks seed by seed has one that it could not see; the other arm is whole.
    assert by_rule(known.findings(pair()))["F101"].verdict == "incomplete"
    assert by_rule(known.findings(arm_of("tpp")))["F601"].verdict == "incomplete"
    assert by_rule(known.findings(arm_of("l1")))["F601"].verdict == "pass"


def test_nothing_measured_is_not_comparable():
    verdict = judged([])
    assert (verdict.verdict, verdict.difference, verdict.seeds) == ("not comparable", None, ())
    assert verdict.summary.endswith("no seed is complete")
    assert {"F607", "F608", "F101", "F601"} <= set(verdict.forbidden_by)


def test_three_seeds_describe():
    seeds = (0, 1, 2)
    verdict = judged(arms(seeds=seeds), pair(seeds=seeds))
    assert (verdict.verdict, verdict.forbidden_by) == ("indeterminate", ())
    assert "descriptive" in verdict.summary
    # Too few seeds are told by a rule, which no protocol requires: a pair may be fair and still say little.
    finding = by_rule(docket(arms(seeds=seeds)).findings(pair(seeds=seeds)))["F603"]
    assert (finding.verdict, finding.required) == ("fail", False)
    assert verdict.uncontrolled == ("F603",)


def test_equal_arms_are_equivalent():
    assert judged(arms(l1=0, tpp=0.1)).verdict == "equivalent"


# Waivers


def test_a_waiver_is_recorded_and_does_not_count():
    found = changed(arms(), "tpp", lambda arm: with_result(arm, learning_rates=[(0.1, 6)]))
    waive = {"F321": "the paper's own rate", "F101": "nothing to waive"}
    known = docket(found, waive=waive)
    findings = by_rule(known.findings(pair()))
    assert (findings["F321"].verdict, findings["F321"].waived) == ("fail", "the paper's own rate")
    assert findings["F321"].required and findings["F321"].holds
    assert (findings["F101"].verdict, findings["F101"].waived) == ("pass", "")
    verdict = known.verdicts([pair()])[pair()]
    assert (verdict.verdict, verdict.forbidden_by) == ("better", ())
    assert verdict.waived == {"F321": "the paper's own rate"}
    assert "F321 waived: the paper's own rate" in verdict.summary


@pytest.mark.parametrize("method", ["l1", "tpp"])
def test_a_rule_on_an_arm_can_be_waived(method):
    found = changed(arms(), method, lambda arm: with_result(arm, optimiser_steps=7))
    verdict = judged(found, waive={"F501": "one step of warm-up"})
    assert (verdict.verdict, verdict.waived) == ("better", {"F501": "one step of warm-up"})


def test_a_waiver_of_another_rule_does_not_help():
    found = changed(arms(), "tpp", lambda arm: with_result(arm, optimiser_steps=7))
    verdict = judged(found, waive={"F502": "because"})
    assert (verdict.verdict, verdict.forbidden_by, verdict.waived) == ("not comparable", ("F501",), {})


# Families


def test_p_values_are_adjusted_over_the_comparisons_of_a_protocol():
    found = [*arms(l1=2, tpp=0, random=-2), *arms("s4.2")]
    # The same runs under two protocols: cells differ, runs do not.
    pairs = [pair("l1", "random"), pair("l1", "tpp"), pair("tpp", "random"), pair(protocol="s4.2")]
    verdicts = judged(found, *pairs)
    assert [verdict.family for verdict in verdicts] == [3, 3, 3, 1]
    assert [verdict.p_adjusted for verdict in verdicts] == [3 / 64, 3 / 64, 3 / 64, 1 / 64]
    assert {verdict.verdict for verdict in verdicts} == {"better"}
    # Seven seeds carry three comparisons; six do not.
    few = [replace(one, seeds=SEEDS[:6]) for one in pairs]
    assert [verdict.verdict for verdict in judged(found, *few)] == ["indeterminate"] * 3 + ["better"]


def test_no_comparisons_no_verdicts():
    assert docket([]).verdicts([]) == {}
    assert docket([]).regressions([], lambda cell: None) == {}


def test_a_docket_reads_a_ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    seeds = (0, 1, 2)
    for arm in arms(seeds=seeds):
        store(ledger, arm)
    ledger = Ledger(ledger.root, writable=False)
    known = Docket(CATALOG, ledger, lambda cell: ledger.cell(cell.id))
    verdict = known.verdicts([pair(seeds=seeds)])[pair(seeds=seeds)]
    assert (verdict.verdict, verdict.forbidden_by, verdict.uncontrolled) == ("indeterminate", (), ("F603",))
    assert verdict == judged(arms(seeds=seeds), pair(seeds=seeds))


# Against an earlier version


def regression(now, before, seeds=SEEDS, subject=None, **options):
    subject = subject or arm_of(seeds=seeds)
    earlier = {arm.cell.cell: arm for arm in before}
    found = docket(now, **options).regressions([subject], earlier.get)
    assert list(found) == [subject]
    return found[subject]


def test_the_same_numbers_are_equivalent():
    verdict = regression(arms(l1=0), arms(l1=0))
    assert (verdict.verdict, verdict.arms) == ("equivalent", ("l1", BASELINE))
    assert verdict.difference.mean == 0 and verdict.seeds == SEEDS
    assert {(images.left_only, images.right_only) for images in verdict.images.values()} == {(0, 0)}


def test_the_same_numbers_over_three_seeds_describe():
    verdict = regression(arms(l1=0, seeds=range(3)), arms(l1=0), seeds=range(3))
    assert (verdict.verdict, verdict.forbidden_by) == ("indeterminate", ())
    assert verdict.difference.mean == 0 and "descriptive" in verdict.summary


@pytest.mark.parametrize(("points", "word"), [(-2, "worse"), (2, "better"), (-0.1, "equivalent")])
def test_a_change_since_the_baseline(points, word):
    verdict = regression(arms(l1=points), arms(l1=0))
    assert verdict.verdict == word and verdict.difference.mean == pytest.approx(points)


def test_a_scratch_arm_has_a_baseline_too():
    verdict = regression(arms("sx-a", scratch=-2), arms("sx-a", scratch=0), subject=arm_of("scratch", "sx-a"))
    assert verdict.verdict == "worse"


@pytest.mark.parametrize("known", [0, 6])
def test_a_missing_baseline_is_not_comparable(known):
    verdict = regression(arms(l1=0), arms(l1=0, seeds=SEEDS[:known]))
    assert verdict.verdict == "not comparable" and "F607" in verdict.forbidden_by
    assert verdict.seeds == SEEDS[:known] and (verdict.difference is None) == (known == 0)
    # The arm itself is whole.
    assert "F601" not in verdict.forbidden_by


def test_a_cell_that_is_gone_is_not_comparable():
    verdict = regression(arms(l1=0, seeds=SEEDS[1:]), arms(l1=0))
    assert verdict.verdict == "not comparable" and {"F607", "F601"} <= set(verdict.forbidden_by)


def test_a_cell_that_fails_now_is_a_failure():
    now = arms(l1=0)
    cells = Cells(now)
    lost = Cell(WORKLOAD, "s3.2", "l1", 0.5, 3)
    cells.records[lost] = failed_cell(lost)
    verdict = docket(now, cells).regressions([arm_of()], {arm.cell.cell: arm for arm in arms(l1=0)}.get)[arm_of()]
    assert verdict.verdict == "not comparable" and "F607" in verdict.forbidden_by
    assert verdict.difference.n == 6


def test_other_software_is_not_comparable():
    verdict = regression(arms(l1=0), changed(arms(l1=0), "l1", software(torch="2.8.0")))
    assert (verdict.verdict, verdict.forbidden_by) == ("not comparable", ("F608",))
    verdict = regression(
        arms(l1=0), changed(arms(l1=0), "l1", software(torch="2.8.0")), waive={"F608": "what the upgrade changes"}
    )
    assert (verdict.verdict, verdict.waived) == ("equivalent", {"F608": "what the upgrade changes"})


def test_another_recipe_is_not_comparable():
    before = changed(arms(l1=0), "l1", lambda arm: with_result(arm, learning_rates=[(0.1, 6)]))
    assert regression(arms(l1=0), before).forbidden_by == ("F321",)


def test_an_arm_that_misbehaves_now_is_not_comparable():
    now = changed(arms(l1=0), "l1", lambda arm: with_result(arm, optimiser_steps=7))
    verdict = regression(now, arms(l1=0))
    assert (verdict.verdict, verdict.forbidden_by) == ("not comparable", ("F501",))


def test_regressions_of_a_protocol_are_a_family():
    now, before = arms(l1=2, tpp=2), arms(l1=0, tpp=0)
    subjects = [arm_of("l1"), arm_of("tpp")]
    found = docket(now).regressions(subjects, {arm.cell.cell: arm for arm in before}.get)
    assert list(found) == subjects
    assert {(verdict.family, verdict.p_adjusted, verdict.verdict) for verdict in found.values()} == {
        (2, 2 / 64, "better")
    }


def test_regressions_ask_what_the_protocol_requires():
    # Too few seeds, no controls: nothing that an arm must show beside its own past.
    verdict = regression(arms(l1=0, seeds=range(3)), arms(l1=0), seeds=range(3))
    assert verdict.uncontrolled == ()
    needed = [rule_id for rule_id in required(CATALOG.protocol("s3.2")) if get_rule(rule_id).scope != "arm"]
    assert {"F607", "F608", "F321"} <= set(needed)


# Seeds that are added after a look


def test_a_verdict_over_seeds_that_were_looked_at_before_is_none():
    found = arms()
    series = docket(found)._case(pair()).series
    for looks, word in (
        ({}, "better"),
        ({series: [7]}, "better"),
        ({series: [3, 5]}, "better"),
        ({"other": [6]}, "better"),
    ):
        assert judged(found, looks=lambda protocol, looks=looks: looks).verdict == word
    extended = judged(found, looks=lambda protocol: {series: [6]})
    assert (extended.verdict, extended.forbidden_by) == ("not comparable", ("F611",))
    # Whoever must show such a table says why.
    waived = judged(found, looks=lambda protocol: {series: [6]}, waive={"F611": "a pilot"})
    assert (waived.verdict, waived.waived) == ("better", {"F611": "a pilot"})


MEASURES = [
    value
    for module in (attribution, comparability, honesty, measurement)
    for value in vars(module).values()
    if getattr(value, "__code__", None) is measured(len).__code__
]


@pytest.mark.parametrize("method", ["l1", "tpp", "scratch"])
def test_what_is_measured_of_an_arm_does_not_depend_on_its_protocol(method):
    """So that it is measured once for all protocols that ask for the same runs."""
    one = evidence(method)
    other = replace(one, cell=one.cell.model_copy(update={"protocol": "s4.1", "protocol_version": 99}))
    checks = [rule.check for rule in rules().values() if rule.scope == "arm" and rule.applies(method)]
    shared = [rule.measure for rule in rules().values() if rule.measure is not None]
    assert len(MEASURES) > 10 and len(checks) > 5 and len(shared) > 10
    for measure in (*checks, *shared, *MEASURES):
        assert measure(one) == measure(other), measure
    assert one._measured is not other._measured


def test_cells_that_say_the_same_of_the_same_runs_are_measured_once():
    arm = evidence("l1")
    shelf, known = Shelf([arm]), {}
    one = Evidence.read(arm.cell, shelf, known)
    elsewhere = Evidence.read(arm.cell.model_copy(update={"protocol": "s4.1", "protocol_version": 99}), shelf, known)
    better = Evidence.read(arm.cell.model_copy(update={"accuracy": 99.0}), shelf, known)
    assert one._measured is elsewhere._measured and one._measured is not better._measured
    check = get_rule("F601").check
    assert check(one).verdict == check(elsewhere).verdict == "pass" and check(better).verdict == "fail"
    # One that differs begins anew, whatever was measured before.
    assert check(replace(one, cell=better.cell)).verdict == "fail"
