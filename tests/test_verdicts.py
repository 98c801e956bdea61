"""Verdicts: what may be said of two arms, how ties are grouped, and what stands across comparisons."""

import gc
import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from builders import CATALOG, evidence, finding, scored
from hypothesis import given, settings
from hypothesis import strategies as st
from rogues.records import with_result

from pruneaudit.audit.catalogue import get_rule, required
from pruneaudit.audit.evidence import Case
from pruneaudit.audit.verdicts import Judged, Verdict, decide, tiers
from pruneaudit.catalog.cells import Comparison
from pruneaudit.ledger.records import pack
from pruneaudit.report.standings import PROFILE_POINTS, profiles, standings, strictest_setups

MARGIN = 0.5


@cache
def arm(method, seed, accuracy):
    return scored(evidence(method, seed=seed), accuracy)


def case(differences, names=("l1", "tpp"), level=75.0):
    """Two arms over seeds 0, 1, …, the first ahead by these differences; None: a seed without evidence."""
    pairs = {
        seed: () if gap is None else (arm(names[0], seed, round(level + gap, 6)), arm(names[1], seed, level))
        for seed, gap in enumerate(differences)
    }
    broken = {seed: "not measured" for seed, arms in pairs.items() if not arms}
    return Case(Comparison("lenet5-digits", "s3.2", *names, 0.5, tuple(pairs)), pairs, broken)


def judged(differences, *findings, names=("l1", "tpp"), **options):
    return Judged(case(differences, names), findings, **{"margin": MARGIN, **options})


def alone(differences, *findings, **options):
    """Verdict of a family of one."""
    (found,) = decide([judged(differences, *findings, **options)])
    return found


def swapped(entry):
    subject = replace(entry.case.subject, left=entry.case.subject.right, right=entry.case.subject.left)
    seeds = {seed: arms[::-1] for seed, arms in entry.case.seeds.items()}
    return replace(entry, case=replace(entry.case, subject=subject, seeds=seeds))


@pytest.fixture(autouse=True, scope="module")
def quick_collections():
    """Statsmodels collects garbage for every family of p values: what is loaded need not be looked at each time."""
    alone([2] * 6)
    gc.freeze()
    yield
    gc.unfreeze()


OPPOSITE = {"better": "worse", "worse": "better"}


# One comparison


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        # Six signs of one kind: p = 2 / 2^6 = 0.03125.
        ([2, 2, 2, 2, 2, 2], "better"),
        ([-2, -2, -2, -2, -2, -2], "worse"),
        ([0.6, 5, 1, 2, 3, 1], "better"),
        # One seed against: p = 4 / 64.
        ([2, 3, 2, 1, 2, -0.1], "indeterminate"),
        # Five seeds cannot reach 0.05, whatever they show.
        ([9, 9, 9, 9, 9], "indeterminate"),
        ([0, 0, 0, 0, 0], "indeterminate"),
        ([0, 0, 0, 0, 0, 0], "equivalent"),
        ([0.1, -0.1, 0.05, 0, 0.1, -0.05], "equivalent"),
        # Significant, and proven too small to matter.
        ([0.1, 0.1, 0.1, 0.1, 0.1, 0.1], "equivalent"),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], "better"),
        # Neither proven different nor proven equal.
        ([3, -3, 2, -2, 1, -1], "indeterminate"),
    ],
)
def test_what_the_differences_allow(differences, word):
    found = alone(differences)
    assert found.verdict == word
    assert found.difference.mean == pytest.approx(np.mean(differences), abs=1e-9)
    assert found.seeds == tuple(range(len(differences))) and found.arms == ("l1", "tpp")
    assert (found.family, found.forbidden_by, found.uncontrolled, found.waived) == (1, (), (), {})
    (mirror,) = decide([swapped(judged(differences))])
    assert mirror.verdict == OPPOSITE.get(word, word)


def test_a_family_of_one_is_not_corrected():
    found = alone([2] * 6)
    assert found.p_adjusted == found.difference.p == 2 / 2**6
    assert found.p_equivalent_adjusted == found.difference.p_equivalent == 1.0


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_few_seeds_only_describe(count):
    found = alone([9.0] * count)
    assert found.verdict == "indeterminate"
    assert "descriptive: better or worse needs 6 seeds" in found.summary
    assert f"n = {count}" in found.summary and "+9.00 pp" in found.summary
    assert found.line.startswith("lenet5-digits s3.2 ratio 0.5: l1 against tpp: indeterminate; +9.00 pp")


def test_enough_seeds_do_more_than_describe():
    assert "descriptive" not in alone([9.0] * 6).summary


def test_the_margin_is_the_protocols():
    assert alone([0.6] * 6, margin=0.5).verdict == "better"
    assert alone([0.6] * 6, margin=1.0).verdict == "equivalent"


def test_labels_are_kept():
    assert alone([2] * 6, labels=("smoke",)).labels == ("smoke",)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(-40, 40).map(lambda step: step / 10), min_size=1, max_size=8))
def test_swapped_arms_give_the_mirrored_verdict(differences):
    (found,), (mirror,) = decide([judged(differences)]), decide([swapped(judged(differences))])
    assert mirror.verdict == OPPOSITE.get(found.verdict, found.verdict)
    assert mirror.arms == found.arms[::-1]
    assert mirror.difference.mean == pytest.approx(-found.difference.mean, abs=1e-9)
    assert mirror.p_adjusted == pytest.approx(found.p_adjusted)
    assert mirror.images == {
        seed: one.model_copy(update={"left_only": one.right_only, "right_only": one.left_only})
        for seed, one in found.images.items()
    }


def test_the_number_of_the_run_decides():
    # A cell that tells another number than its run is rule F601's.
    entry = judged([2] * 6)
    seeds = {
        seed: (replace(left, cell=left.cell.model_copy(update={"accuracy": 0.0})), right)
        for seed, (left, right) in entry.case.seeds.items()
    }
    assert decide([replace(entry, case=replace(entry.case, seeds=seeds))])[0].difference.mean == 2


# Families


@pytest.mark.parametrize(
    ("seeds", "size", "word"),
    [
        (6, 1, "better"),
        (6, 2, "indeterminate"),
        (7, 2, "better"),
        (7, 3, "better"),
        (7, 4, "indeterminate"),
        (8, 4, "better"),
    ],
)
def test_p_values_are_adjusted_over_the_family(seeds, size, word):
    found = decide([judged([2] * seeds) for _ in range(size)])
    assert [one.verdict for one in found] == [word] * size
    # All the same: Holm multiplies the first by m, and no later one may be smaller.
    assert {one.p_adjusted for one in found} == {size * 2 / 2**seeds}
    assert {one.family for one in found} == {size}


def test_holm_by_hand():
    # p = 1/64, 1/128, 1/32. Sorted: 1/128 · 3, 1/64 · 2, 1/32 · 1, and never falling.
    found = decide([judged([2] * 7), judged([2] * 8), judged([2] * 6)])
    assert [one.p_adjusted for one in found] == pytest.approx([1 / 32, 3 / 128, 1 / 32])
    assert [one.verdict for one in found] == ["better"] * 3


def test_equivalence_is_adjusted_too():
    differences = [0.4, -0.2, 0.3, 0.1, -0.3, 0.35]
    single = alone(differences)
    assert single.verdict == "equivalent" and 0.025 / 4 < single.p_equivalent_adjusted <= 0.05
    size = int(0.05 / single.p_equivalent_adjusted) + 1
    found = decide([judged(differences) for _ in range(size)])
    expected = size * single.difference.p_equivalent
    assert [one.p_equivalent_adjusted for one in found] == [pytest.approx(expected)] * size
    assert {one.verdict for one in found} == {"indeterminate"}


def test_a_family_counts_only_what_may_be_compared():
    bad = finding("F201", "fail")
    found = decide([judged([2] * 6), judged([2] * 6, bad), judged([None] * 6)])
    assert [one.verdict for one in found] == ["better", "not comparable", "not comparable"]
    assert [one.p_adjusted for one in found] == [2 / 2**6, None, None]
    assert found[0].family == 1


def test_the_order_of_the_table_does_not_matter():
    entries = [judged([2] * 7), judged([0] * 6), judged([-3] * 8, names=("l1", "random")), judged([1, -1, 2])]
    known = decide(entries)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        assert decide([entries[place] for place in order]) == [known[place] for place in order]


def test_an_empty_table_has_no_verdicts():
    assert decide([]) == []


# What forbids a verdict


@pytest.mark.parametrize("word", ["fail", "not measured", "incomplete"])
@pytest.mark.parametrize("arms", [("l1", "tpp"), ("l1",), ("tpp",)])
def test_a_required_rule_that_does_not_hold_forbids(word, arms):
    found = alone([2] * 6, finding("F101", "pass"), finding("F501", word, arms=arms))
    assert (found.verdict, found.forbidden_by) == ("not comparable", ("F501",))
    assert found.summary.startswith("not comparable because of F501; +2.00 pp")
    # The difference is told all the same, and no p says that it was tested.
    assert found.difference.mean == 2 and found.p_adjusted is None and found.p_equivalent_adjusted is None


def test_forbidding_rules_are_named_once_and_in_order():
    findings = [finding("F601", "fail"), finding("F201", "fail"), finding("F601", "not measured", arms=("tpp",))]
    found = alone([2] * 6, *findings)
    assert found.forbidden_by == ("F201", "F601")
    assert "because of F201, F601;" in found.summary


@pytest.mark.parametrize("word", ["fail", "not measured", "incomplete"])
def test_a_rule_that_is_not_required_forbids_nothing(word):
    found = alone([2] * 6, finding("F321", word, required=False), finding("F101", "pass", required=False))
    assert (found.verdict, found.forbidden_by) == ("better", ())
    # What was measured and differs may explain the difference; what was not measured is not known to differ.
    assert found.uncontrolled == (("F321",) if word == "fail" else ())


def test_uncontrolled_rules_are_named_once_and_in_order():
    findings = [finding(rule, "fail", required=False) for rule in ("F322", "F321", "F322")]
    assert alone([2] * 6, *findings, finding("F101", "fail")).uncontrolled == ("F321", "F322")


@pytest.mark.parametrize("word", ["fail", "not measured", "incomplete"])
def test_a_waived_rule_forbids_nothing_and_is_told(word):
    found = alone([2] * 6, finding("F321", word, waived="the paper's rate"), finding("F322", "pass"))
    assert (found.verdict, found.forbidden_by, found.waived) == ("better", (), {"F321": "the paper's rate"})
    assert found.summary.endswith("; F321 waived: the paper's rate")
    assert found.uncontrolled == ()


def test_another_rule_still_forbids_beside_a_waiver():
    found = alone([2] * 6, finding("F321", "fail", waived="because"), finding("F101", "fail"))
    assert (found.verdict, found.forbidden_by, found.waived) == ("not comparable", ("F101",), {"F321": "because"})


def test_without_a_complete_seed_there_is_nothing_to_compare():
    found = alone([None, None], finding("F607", "fail"))
    assert (found.verdict, found.forbidden_by, found.difference) == ("not comparable", ("F607",), None)
    assert found.summary == "not comparable because of F607; no seed is complete"
    assert found.seeds == () and found.images == {} and found.family == 1
    assert alone([None]).verdict == "not comparable"


def test_complete_seeds_are_described_where_others_are_missing():
    found = alone([2, None, 4], finding("F607", "incomplete"))
    assert found.seeds == (0, 2) and found.difference.n == 2 and found.difference.mean == 3
    assert set(found.images) == {0, 2}


# Images


def test_images_are_compared_seed_by_seed():
    left = np.array([1, 1, 1, 0, 0, 1, 1, 0, 0, 0], dtype=bool)
    right = np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 1], dtype=bool)
    entry = judged([2, 2])
    seeds = dict(entry.case.seeds)
    seeds[1] = tuple(
        with_result(one, correct=pack(bits), test_images=10) for one, bits in zip(seeds[1], (left, right), strict=True)
    )
    images = decide([replace(entry, case=replace(entry.case, seeds=seeds))])[0].images
    # Four against one of five: P(X <= 1) · 2 = 2 · (1 + 5) / 32.
    assert (images[1].left_only, images[1].right_only) == (4, 1) and images[1].p == pytest.approx(12 / 32)
    # Two points of 2000 images.
    assert (images[0].left_only, images[0].right_only) == (40, 0) and images[0].p < 1e-9


@pytest.mark.parametrize("fields", [{"split_digest": "00" * 32}, {"correct": ""}])
@pytest.mark.parametrize("side", [0, 1])
def test_other_images_are_not_compared(fields, side):
    entry = judged([2, 2])
    seeds = dict(entry.case.seeds)
    arms = list(seeds[0])
    arms[side] = with_result(arms[side], **fields)
    seeds[0] = tuple(arms)
    assert set(decide([replace(entry, case=replace(entry.case, seeds=seeds))])[0].images) == {1}


def test_images_do_not_decide():
    found = alone([2] * 3)
    assert found.verdict == "indeterminate" and all(one.p < 1e-6 for one in found.images.values())


# Tiers


def verdict(left, right, word, **fields):
    given = {"workload": "lenet5-digits", "protocol": "s3.2", "ratio": 0.5, "arms": (left, right), **fields}
    return Verdict(verdict=word, **given)


@pytest.mark.parametrize(
    ("accuracies", "verdicts", "groups"),
    [
        ({}, [], []),
        ({"a": 90.0}, [], [("a",)]),
        # Nothing tells them apart: one group, in the order of the means.
        ({"a": 90.0, "b": 91.0}, [("a", "b", "indeterminate")], [("b", "a")]),
        ({"a": 90.0, "b": 91.0}, [("a", "b", "equivalent")], [("b", "a")]),
        ({"a": 90.0, "b": 91.0}, [], [("b", "a")]),
        ({"a": 90.0, "b": 91.0}, [("a", "b", "worse")], [("b",), ("a",)]),
        ({"a": 90.0, "b": 91.0}, [("b", "a", "better")], [("b",), ("a",)]),
        # b ties with the best, c with b only: c is worse than the best one of the group.
        (
            {"a": 92.0, "b": 91.0, "c": 90.0},
            [("a", "b", "indeterminate"), ("b", "c", "indeterminate"), ("a", "c", "better")],
            [("a", "b"), ("c",)],
        ),
        # c is worse than b, and not shown to be worse than the best one.
        ({"a": 92.0, "b": 91.0, "c": 90.0}, [("c", "b", "worse")], [("a", "b", "c")]),
        (
            {"a": 92.0, "b": 91.0, "c": 90.0},
            [("a", "b", "better"), ("a", "c", "better"), ("b", "c", "better")],
            [("a",), ("b",), ("c",)],
        ),
        # Equal means: by name.
        ({"b": 90.0, "a": 90.0}, [], [("a", "b")]),
    ],
)
def test_ties_are_grouped_and_never_ranked(accuracies, verdicts, groups):
    assert tiers(accuracies, [verdict(*one) for one in verdicts]) == groups


@settings(deadline=None, max_examples=100)
@given(
    means=st.dictionaries(st.sampled_from("abcdef"), st.integers(50, 60).map(float), min_size=1),
    words=st.lists(st.sampled_from(["better", "worse", "equivalent", "indeterminate"]), min_size=15, max_size=15),
)
def test_groups_hold_every_method_once(means, words):
    pairs = list(itertools.combinations("abcdef", 2))
    verdicts = [verdict(*pair, word) for pair, word in zip(pairs, words, strict=True)]
    groups = tiers(means, verdicts)
    assert sorted(itertools.chain(*groups)) == sorted(means)
    worse = {
        pair if word == "worse" else pair[::-1]
        for pair, word in zip(pairs, words, strict=True)
        if word in ("better", "worse")
    }
    for number, group in enumerate(groups):
        assert all(means[group[0]] >= means[name] for later in groups[number:] for name in later)
        assert not any((name, group[0]) in worse for name in group)
        assert all((name, group[0]) in worse for later in groups[number + 1 :] for name in later)


# Standings


def rows(method, *accuracies, ratio=0.5, protocol="s3.2", workload="lenet5-digits", labels=(), **more):
    given = {"workload": workload, "protocol": protocol, "method": method, "ratio": ratio, "labels": list(labels)}
    given = {**given, "status": "ok", "granularity": "filter", **more}
    return [{**given, "seed": seed, "accuracy": one} for seed, one in enumerate(accuracies)]


def test_what_no_verdict_connects_stands_in_rows_of_its_own():
    names = ("l1", "tpp", "magnitude-layer", "random-weight", "unlike-any")
    verdicts = [
        verdict("l1", "tpp", "indeterminate"),
        verdict("magnitude-layer", "random-weight", "better"),
        verdict("l1", "magnitude-layer", "not comparable"),
        verdict("unlike-any", "l1", "not comparable"),
    ]
    found = standings([line for name in names for line in rows(name, 90, 91)], verdicts)
    assert [(row["groups"], row["not_comparable"]) for row in found] == [
        ([["l1", "tpp"]], ["unlike-any"]),
        ([["magnitude-layer"], ["random-weight"]], []),
    ]


def test_standings_group_each_operating_point():
    table = [*rows("l1", 90, 92), *rows("tpp", 93, 95), *rows("random", 80, 84), *rows("l1", 70, ratio=0.9)]
    verdicts = [
        verdict("l1", "tpp", "indeterminate"),
        verdict("l1", "random", "better"),
        verdict("random", "tpp", "worse"),
        verdict("l1", "tpp", "indeterminate", ratio=0.9),
    ]
    found = standings(table, verdicts)
    assert found == [
        {
            "workload": "lenet5-digits",
            "labels": [],
            "protocol": "s3.2",
            "ratio": 0.5,
            "groups": [["l1", "tpp"], ["random"]],
            "not_comparable": [],
        },
        # No cell of tpp at this ratio.
        {
            "workload": "lenet5-digits",
            "labels": [],
            "protocol": "s3.2",
            "ratio": 0.9,
            "groups": [["l1"]],
            "not_comparable": [],
        },
    ]


def test_methods_that_may_not_be_compared_stand_apart():
    table = [*rows("l1", 90), *rows("tpp", 93), *rows("random", 80)]
    verdicts = [
        verdict("l1", "tpp", "not comparable"),
        verdict("l1", "random", "better"),
        verdict("random", "tpp", "not comparable"),
    ]
    (found,) = standings(table, verdicts)
    assert (found["groups"], found["not_comparable"]) == ([["l1"], ["random"]], ["tpp"])
    (found,) = standings(table, [verdict("l1", "tpp", "not comparable")])
    assert (found["groups"], found["not_comparable"]) == ([], ["l1", "tpp"])


def test_labels_protocols_and_workloads_stand_in_rows_of_their_own():
    table = [*rows("l1", 90), *rows("l1", 10, labels=("smoke",)), *rows("tpp", 80), *rows("tpp", 20, labels=("smoke",))]
    verdicts = [verdict("l1", "tpp", "better"), verdict("l1", "tpp", "worse", labels=("smoke",))]
    assert [(one["labels"], one["groups"]) for one in standings(table, verdicts)] == [
        ([], [["l1"], ["tpp"]]),
        (["smoke"], [["tpp"], ["l1"]]),
    ]
    verdicts = [verdict("a", "b", "better", protocol=name) for name in ("s2", "s1")]
    assert [one["protocol"] for one in standings([], verdicts)] == ["s1", "s2"]


def test_failed_cells_have_no_mean():
    table = [*rows("l1", 90), *rows("tpp", None, status="failed")]
    (found,) = standings(table, [verdict("l1", "tpp", "indeterminate")])
    assert found["groups"] == [["l1"]]


# The strictest setup of a pair

COMPARABILITY = sorted(
    {
        rule_id
        for name in CATALOG.strictness
        for rule_id in required(CATALOG.protocol(name))
        if get_rule(rule_id).scope == "pair" and rule_id[1] in "1234"
    }
)


def measured(*failing, protocol="s3.2", word="fail", arms=("l1", "tpp"), **fields):
    """Findings of all rules on comparability; some do not hold."""
    return [
        finding(rule_id, word if rule_id in failing else "pass", protocol=protocol, arms=arms, **fields)
        for rule_id in COMPARABILITY
    ]


def setup(findings):
    (found,) = strictest_setups(CATALOG, findings)
    return found["setup"]


def test_the_rules_that_make_a_setup():
    assert COMPARABILITY == [
        "F101", "F102", "F103", "F104", "F105", "F201", "F311", "F312", "F314", "F321", "F322", "F411", "F421",
    ]  # fmt: skip


@pytest.mark.parametrize("protocol", ["s1", "s3.1", "s3.2", "s4.2"])
def test_two_one_shot_methods_meet_the_strictest_setup(protocol):
    assert strictest_setups(CATALOG, measured(protocol=protocol)) == [
        {"workload": "lenet5-digits", "labels": [], "ratio": 0.5, "arms": ["l1", "tpp"], "setup": "s4.2"}
    ]


@pytest.mark.parametrize(
    ("failing", "strictest"),
    [
        (("F421",), "s4.1"),
        (("F411",), "s3.2"),
        (("F411", "F421"), "s3.2"),
        (("F321",), "s3.1"),
        # With one trial for each arm other rates are another grid, too.
        (("F321", "F312"), "s2"),
        (("F311",), "s2"),
        (("F201",), "s1"),
        (("F103",), None),
    ],
)
@pytest.mark.parametrize("word", ["fail", "not measured", "incomplete"])
def test_a_rule_that_does_not_hold_limits_the_setup(failing, strictest, word):
    assert setup(measured(*failing, word=word)) == strictest


def test_a_missing_finding_limits_the_setup():
    assert setup([one for one in measured() if one.rule != "F421"]) == "s4.1"


def test_a_waived_rule_was_not_measured_to_hold():
    assert setup(measured("F421", waived="a constant rate")) == "s4.1"


def test_one_protocol_alone_must_show_it():
    # F421 holds under S3.2 and F411 under S2: under neither do both.
    assert setup([*measured("F411"), *measured("F421", protocol="s2")]) == "s4.1"
    assert setup([*measured("F411"), *measured(protocol="s2")]) == "s4.2"


def test_behaviour_and_numbers_are_no_part_of_the_setup():
    findings = [finding(rule_id, "fail") for rule_id in ("F602", "F607", "F703", "F801")]
    findings += [finding("F501", "fail", arms=("l1",))]
    assert setup([*measured(), *findings]) == "s4.2"


def test_pairs_against_scratch_are_left_out():
    assert strictest_setups(CATALOG, measured(protocol="sx-a", arms=("l1", "scratch"))) == []


def test_each_pair_point_and_label_has_a_setup():
    found = strictest_setups(
        CATALOG,
        [
            *measured(),
            *measured("F201", ratio=0.9),
            *measured("F421", labels=("smoke",)),
            *measured("F411", arms=("tpp", "random")),
        ],
    )
    assert {(one["ratio"], *one["labels"], *one["arms"]): one["setup"] for one in found} == {
        (0.5, "l1", "tpp"): "s4.2",
        (0.9, "l1", "tpp"): "s1",
        (0.5, "smoke", "l1", "tpp"): "s4.1",
        (0.5, "random", "tpp"): "s3.2",
    }


# Profiles


def test_shares_by_hand():
    table = [
        *rows("l1", 90, 92),  # mean 91, best
        *rows("tpp", 90.5),  # 0.5 behind
        *rows("l1", 80, ratio=0.9),  # 1.5 behind
        *rows("tpp", 81.5, ratio=0.9),  # best
        *rows("l1", 60, workload="lenet5-mnist"),  # 6 behind
        *rows("tpp", 66, workload="lenet5-mnist"),  # best
        *rows("l1", 70, workload="lenet5-fmnist"),  # a tie: both are best
        *rows("tpp", 70, workload="lenet5-fmnist"),
    ]
    assert PROFILE_POINTS == (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
    (found,) = profiles(table)
    assert found == {
        "protocol": "s3.2",
        "labels": [],
        "points": ["lenet5-digits r0.5", "lenet5-digits r0.9", "lenet5-fmnist r0.5", "lenet5-mnist r0.5"],
        "within": list(PROFILE_POINTS),
        "share": {"l1": [0.5, 0.5, 0.5, 0.75, 0.75, 1.0], "tpp": [0.75, 1.0, 1.0, 1.0, 1.0, 1.0]},
    }


def full(*methods, protocol="s3.2", labels=()):
    return [
        row
        for number, method in enumerate(methods)
        for ratio in (0.5, 0.9)
        for row in rows(method, 90 - number, ratio=ratio, protocol=protocol, labels=labels)
    ]


def test_smaller_networks_and_networks_with_zeros_have_profiles_of_their_own():
    masked = [{**row, "granularity": "weight"} for row in full("magnitude-layer", "random-weight")]
    assert [sorted(profile["share"]) for profile in profiles([*full("l1", "tpp"), *masked])] == [
        ["l1", "tpp"],
        ["magnitude-layer", "random-weight"],
    ]


def test_a_profile_needs_every_cell():
    assert len(profiles(full("l1", "tpp"))) == 1
    missing = [row for row in full("l1", "tpp") if (row["method"], row["ratio"]) != ("tpp", 0.9)]
    assert profiles(missing) == []
    failed = [*full("l1", "tpp"), *rows("tpp", 80, None)[1:]]
    failed[-1] |= {"status": "failed"}
    assert profiles(failed) == []


def test_a_profile_needs_two_points_and_two_methods():
    assert profiles([]) == []
    assert profiles(full("l1")) == []
    assert profiles([row for row in full("l1", "tpp") if row["ratio"] == 0.5]) == []


def test_the_dense_reference_and_cross_validated_recipes_are_no_rivals():
    (found,) = profiles([*full("l1", "tpp", "unpruned"), *full("l1", "tpp", protocol="xv-l1")])
    assert set(found["share"]) == {"l1", "tpp"} and found["protocol"] == "s3.2"
    assert profiles(full("l1", "unpruned")) == []


def test_protocols_and_labels_have_profiles_of_their_own():
    table = [*full("l1", "tpp"), *full("tpp", "l1", protocol="s2"), *full("tpp", "l1", labels=("smoke",))]
    best = {(one["protocol"], *one["labels"]): one["share"]["l1"][0] for one in profiles(table)}
    assert best == {("s3.2",): 1.0, ("s2",): 0.0, ("s3.2", "smoke"): 0.0}


# What an indeterminate one lacks


def test_an_indeterminate_verdict_says_how_many_more_seeds_and_a_decided_one_nothing():
    open_one = alone([3, -1, 2, 1.5, -0.5, 2.5])
    assert open_one.verdict == "indeterminate"
    assert open_one.outlook.more == open_one.outlook.seeds - 6 > 0 and open_one.outlook.word == "different"
    assert f"about {open_one.outlook.more} more seeds would decide it (better or worse)" in open_one.summary
    assert open_one.summary.endswith("in another ledger (F611)")
    assert alone([2] * 6).outlook is None and alone([9.0]).outlook is None
    # Fewer than six give no verdict: they may be added to.
    assert "F611" not in alone([3, -1, 2]).summary


def test_what_others_decided_is_no_longer_in_the_way():
    table = [judged([3, -1, 2, 1.5, -0.5, 2.5]), *[judged([2, 2.5, 2, 3, 2, 2.2, 2.4, 2.1])] * 5]
    far, *decided = decide(table)
    assert {verdict.verdict for verdict in decided} == {"better"}
    assert far.outlook.seeds == alone([3, -1, 2, 1.5, -0.5, 2.5]).outlook.seeds
