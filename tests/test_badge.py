"""The badge of a report."""

import json
from xml.etree import ElementTree

import pytest
from builders import finding

from pruneaudit.report.badge import badge
from pruneaudit.report.results import Results

MEASURED = {"status": "ok"}


def results(*verdicts, cells=(MEASURED,), **fields):
    rows = [finding(verdict=verdict, **fields).row() for verdict in verdicts]
    return Results(cells=list(cells), findings=rows)


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (results("pass", "pass"), "fair, 2 of 2 checks hold"),
        (results("pass", "fail"), "1 of 2 checks fail"),
        (results("pass", "incomplete"), "incomplete"),
        (results("pass", cells=[MEASURED, {"status": "failed"}]), "incomplete, 1 of 2 cells missing"),
        (results("pass", cells=[MEASURED, {"status": "skipped"}]), "fair, 1 of 1 checks hold"),
        (results("fail", waived="a known bug"), "nothing measured"),
        (results(), "nothing measured"),
        (results("not measured"), "nothing measured"),
    ],
)
def test_it_says_fair_only_where_everything_was_measured_and_holds(shown, message):
    assert badge(shown).message == message


def test_what_is_not_required_does_not_count():
    rows = [finding(verdict=verdict, required=need).row() for verdict, need in (("pass", True), ("fail", False))]
    assert badge(Results(cells=[MEASURED], findings=rows)).message == "fair, 1 of 1 checks hold"


def test_a_waived_rule_is_told():
    rows = [finding().row(), finding(verdict="fail", waived="a known bug").row()]
    assert badge(Results(cells=[MEASURED], findings=rows)).message == "fair, 1 of 2 checks hold, 1 waived"


def test_the_picture_and_the_endpoint_say_the_same():
    made = badge(results("pass", "fail"))
    picture = ElementTree.fromstring(made.svg)
    assert picture.get("aria-label") == f"pruneaudit: {made.message}"
    assert made.message in "".join(picture.itertext())
    assert json.loads(made.endpoint) == {
        "schemaVersion": 1,
        "label": "pruneaudit",
        "message": made.message,
        "color": made.colour,
    }
    assert len({badge(shown).colour for shown in (results("pass"), results("fail"), results("incomplete"))}) == 3
