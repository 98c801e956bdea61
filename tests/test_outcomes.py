"""What pytest reports and the audit did not say is never green: skips, expected failures, exits, items taken away."""

import pytest
from builders import evidence, store

from pruneaudit.ledger.store import Ledger

#: Judged from a ledger that is there: nothing trains.
JUDGED = ("suite", "--audit-from", "ledger", "-k", "lenet5-digits and s3.2 and r0.5", "--audit-seeds", "1")
JUDGED += ("--audit-methods", "l1,tpp")

#: What a conftest.py may do to outcomes: each to a rule of its own.
HOOKS = """
import pytest

def pytest_collection_modifyitems(items):
    for item in items:
        if "F321" in item.name:
            item.add_marker(pytest.mark.skip(reason="flaky"))
        if "F101" in item.name:
            item.add_marker(pytest.mark.xfail(reason="known", strict=False))

def pytest_runtest_setup(item):
    if "F201" in item.name:
        pytest.skip("not this one")

def pytest_pyfunc_call(pyfuncitem):
    return True if "F103" in pyfuncitem.name else None

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.when == "call" and report.failed:
        report.outcome, report.longrepr = "passed", None
    return report
"""
TAKEN = """
def pytest_collection_modifyitems(config, items):
    gone = [item for item in items if 'F321' in item.name]
    config.hook.pytest_deselected(items=gone)
    items[:] = [item for item in items if item not in gone and 'F101' not in item.name]
"""
EXIT = """
import pytest
def pytest_runtest_call(item):
    if "F321" in item.name:
        pytest.exit("enough", returncode=0)
"""
# As pytest-repeat does with --count.
REPEATED = """
import pytest

@pytest.fixture
def again(request):
    return request.param

@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc):
    metafunc.fixturenames.append("again")
    metafunc.parametrize("again", range(2), indirect=True)
"""
# As pytest-forked has it.
FORKED = """
def pytest_addoption(parser):
    parser.addoption("--forked", action="store_true")
"""


@pytest.fixture
def judged(checkout):
    """A checkout with a ledger of two arms that pass everything that is required of them."""
    ledger = Ledger(checkout.root / "ledger")

    def judge(conftest="", *more, accuracy=None, workers=False):
        for name in ("l1", "tpp"):
            store(ledger, evidence(name, "s3.2"), accuracy)
        with (checkout.root / "conftest.py").open("a") as file:
            file.write(conftest)
        return checkout.pytest(*JUDGED, *more, *(("-n", "1") if workers else ("-p", "no:xdist")))

    return judge


def incomplete(outcome):
    return [line for line in outcome.lines if line.startswith("INCOMPLETE: ")]


def test_what_the_audit_says_itself_is_believed_and_options_may_take_away(judged):
    name = "suite/test_fairness.py::test_fairness[lenet5-digits-l1-vs-tpp-s3.2-r0.5-F321]"
    outcome = judged("", "--deselect", name, "-m", "not parametrized_by_nobody", "-o", "markers=parametrized_by_nobody")
    assert outcome.code == 0 and not incomplete(outcome), outcome.text
    assert "40 passed, 564 deselected" in outcome.text, outcome.text


def test_an_outcome_of_somebody_elses_is_incomplete(judged):
    # Where cells and their runs disagree a rule fails, of each arm.
    outcome = judged(HOOKS, accuracy=99.0)
    assert outcome.code == 3, outcome.text
    (line,) = incomplete(outcome)
    assert "are not the audit's own, such as suite/test_fairness.py::test_fairness[lenet5-digits-" in line
    assert line.startswith("INCOMPLETE: 6 outcome(s)"), outcome.text


def test_an_item_that_is_taken_away_is_told(judged):
    outcome = judged(TAKEN)
    assert outcome.code == 3, outcome.text
    (line,) = incomplete(outcome)
    assert line.startswith(
        "INCOMPLETE: 2 item(s) were taken away by a plugin or a conftest.py, such as suite/test_fair"
    )


@pytest.mark.parametrize("workers", [False, True])
def test_items_under_other_names_are_refused_before_they_run(judged, workers):
    """The report finds what was selected by the names of items: there was none, and the session was green."""
    outcome = judged(REPEATED, workers=workers)
    (line,) = [line for line in outcome.lines if "--audit-seeds repeats what is measured" in line]
    assert outcome.code == (5 if workers else 4) and "passed" not in outcome.text, outcome.text
    assert line.startswith("INCOMPLETE: suite/" if workers else "ERROR: suite/"), line
    assert "-0] is lenet5-digits-" in line and "Traceback" not in outcome.text, outcome.text


@pytest.mark.parametrize("option", ["--setup-only", "--setup-plan"])
def test_items_that_are_only_set_up_are_not_green(judged, option):
    outcome = judged("", option)
    (line,) = incomplete(outcome)
    assert outcome.code == 3 and line.endswith("set up and never run, as by --setup-only"), outcome.text


def test_a_failure_is_the_audits_own_word(judged):
    outcome = judged(accuracy=99.0)
    assert outcome.code == 1 and not incomplete(outcome), outcome.text


def test_forks_that_cannot_work_are_refused(judged):
    outcome = judged(FORKED, "--forked")
    assert outcome.code == 4 and outcome.text.startswith("ERROR: --forked (pytest-forked) runs"), outcome.text


def test_an_exit_that_claims_success_is_incomplete(judged):
    outcome = judged(EXIT)
    assert outcome.code == 3 and "items were never reported" in outcome.text, outcome.text
