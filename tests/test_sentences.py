"""Verdicts in sentences."""

from pruneaudit.audit.outlook import Outlook
from pruneaudit.audit.sequential import Plan
from pruneaudit.audit.statistics import difference
from pruneaudit.audit.verdicts import Verdict
from pruneaudit.report.sentences import sentences


def verdict(word, left, right, seeds=3, **fields):
    """A row of a verdict; the first arm is two points better."""
    given = {
        "workload": "lenet5-digits",
        "protocol": "s3.2",
        "ratio": 0.5,
        "arms": (left, right),
        "seeds": tuple(range(seeds)),
        "difference": difference(
            [92.0 + seed for seed in range(seeds)], [90.0 + 0.9 * seed for seed in range(seeds)], 0.5
        ),
        "p_adjusted": 0.0312,
        "family": 3,
    }
    return Verdict.model_validate({"verdict": word, **given, **fields}).model_dump(mode="json")


def texts(*rows):
    return [sentence.text for sentence in sentences(rows)]


def test_a_decision_stands_with_its_evidence_and_before_everything_else():
    tie, decided = verdict("indeterminate", "a", "b"), verdict("better", "c", "a", seeds=8)
    first, second = texts(tie, decided)
    assert first.startswith("c is better than a: +2.35 points, 95 % interval +2.15 to +2.55, p = 0.0312 ")
    assert first.endswith("after correction over 3 comparisons, 8 seeds.")
    assert second.startswith("Nothing tells a and b apart")


def test_ties_are_one_sentence_for_all_that_they_connect():
    rows = [verdict("indeterminate", *pair) for pair in (("a", "b"), ("b", "c"), ("a", "c"), ("x", "y"))]
    assert texts(*rows) == [
        "Nothing tells a, b and c apart: 3 of the 7 seeds that a decision needs.",
        "Nothing tells x and y apart: 3 of the 7 seeds that a decision needs.",
    ]


def test_pairs_that_were_not_compared_are_not_claimed():
    rows = [verdict("indeterminate", *pair, seeds=8) for pair in (("a", "b"), ("b", "c"))]
    assert texts(*rows) == ["Nothing tells a, b and c apart (2 of their 3 pairs are compared), with 8 seeds."]


def test_what_is_open_says_what_it_lacks_and_a_plan_names_no_fixed_number():
    plan = Plan(seeds=9, comparisons=3, margin=0.5)
    rows = [
        verdict(
            "indeterminate", *pair, seeds=6, plan=plan, looks=6, outlook=Outlook(seeds=more + 6, more=more, word="x")
        )
        for pair, more in ((("a", "b"), 30), (("b", "c"), 4), (("a", "c"), 12))
    ]
    tie = "Nothing tells a, b and c apart, with 6 seeds."
    assert texts(*rows) == [f"{tie} At its present mean and spread about 4 more seeds would decide b and c."]
    assert texts(rows[1]) == [
        "Nothing tells b and c apart, with 6 seeds. At its present mean and spread about 4 more seeds would decide it."
    ]
    far = verdict("indeterminate", "a", "b", seeds=8, outlook=Outlook(seeds=None, more=None))
    assert texts(far) == ["Nothing tells a and b apart, with 8 seeds."]


def test_equivalent_methods_name_the_margin():
    assert texts(verdict("equivalent", "a", "b")) == ["a and b are equivalent: they differ by less than 0.5 points."]


def test_what_does_not_count_says_because_of_which_rules():
    rules = ("F201", "F321")
    rows = [verdict("not comparable", left, "x", forbidden_by=rules) for left in ("a", "b")]
    other = verdict("not comparable", "c", "x", forbidden_by=("F103",))
    found = sentences([*rows, other])
    assert [sentence.text for sentence in found] == [
        "Not comparable: a with x and b with x, because of F201 and F321.",
        "Not comparable: c with x, because of F103.",
    ]
    assert found[0].rules == rules


def test_of_many_pairs_and_rules_the_first_are_named():
    """Hundreds of pairs of a large table would fill pages; a missing cell leaves every other rule open."""
    rules = ("F101", "F102", "F103", "F104", "F607")
    rows = [verdict("not comparable", f"m{number}", "x", forbidden_by=rules) for number in range(12)]
    (found,) = sentences(rows)
    assert found.text.startswith("Not comparable: m0 with x; m1 with x; ")
    assert found.text.endswith("; m7 with x and 4 more pairs, because of F607, F101 and 3 more rules.")
    assert found.rules == ("F607", "F101")
