"""One cause, one failure: the first item says why, where and where the traceback is; the others were not run."""

import traceback
from pathlib import Path

import pytest

from conftest import ROOT
from pruneaudit.plugin.causes import Causes, key, place, told

SUITE = """
import pytest
from pruneaudit.plugin.causes import CAUSE

@pytest.mark.parametrize("cause", ["one", "one", "two", "one", ""])
def test_it(cause, request):
    if cause:
        request.node.stash[CAUSE] = cause
    pytest.fail(f"because of {cause}", pytrace=False)
"""
CONFTEST = """
from pruneaudit.plugin.causes import Causes

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Causes(), "causes-here")
"""


@pytest.mark.parametrize("options", [(), ("-n1",), ("--maxfail=3",)])
def test_one_failure_for_each_cause(pytester, options):
    """What has no cause of its own fails for itself, and what was not run does not count as a failure."""
    pytester.makepyfile(SUITE)
    pytester.makeconftest(CONFTEST)
    outcome = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rs", "--junitxml=junit.xml", *options)
    outcome.assert_outcomes(failed=3, skipped=2)
    outcome.stdout.fnmatch_lines(["SKIPPED [[]2[]]*not run: it depends on what failed in *test_it*one0*"])
    text = (pytester.path / "junit.xml").read_text()
    assert 'failures="3"' in text and 'skipped="2"' in text


RAISES = """
from types import SimpleNamespace
from pruneaudit.errors import MethodError
from pruneaudit.plugin.session import AuditSession

def test_it(request):
    session = SimpleNamespace(_told=lambda text, trace, method: f"{text}; told of {method}")
    try:
        raise MethodError("it broke") from ValueError("why it broke")
    except MethodError as error:
        AuditSession.fail(session, request.node, error, "mine")
"""


def test_a_message_stands_there_once(pytester):
    """What is behind an error is in the traceback that is kept, and is not printed before it."""
    pytester.makepyfile(RAISES)
    outcome = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(["it broke; told of mine"])
    assert "why it broke" not in outcome.stdout.str() and "exception" not in outcome.stdout.str()


def test_a_cause_is_told_apart_by_what_it_says_not_by_run_or_number():
    first = "run lenet5-digits-prune-mine-r0.5-seed0 failed: method 'mine' keeps 5 of 6 filters; ratio 0.5 asks for 3"
    again = "method 'mine' keeps 4 of 6 filters; ratio 0.9 asks for 1"
    assert key(first) == key(again)
    assert key(again) != key(again.replace("mine", "yours"))


def test_the_line_of_the_users_code_is_named_and_the_traceback_kept(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import json\n\n\ndef score():\n    return json.loads('{')\n")
    space = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    try:
        space["score"]()
    except ValueError as error:
        trace = "".join(traceback.format_exception(error))
    assert place(trace) == f"{path}:5", "not the library's line, which comes last"
    ours = f'  File "{ROOT}/suite/test_conformance.py", line 15, in test_conformance\n'
    assert place(trace + ours) == place(trace), "the suite of a checkout is no user's code either"
    text = told("it failed", trace, tmp_path / "kept")
    message, where, kept = text.split("; ")
    assert (message, where) == ("it failed", f"at {path}:5")
    assert Path(kept.removeprefix("traceback in ")).read_text() == trace
    assert told("it failed", "", tmp_path / "kept", "mine.py:3") == "it failed; at mine.py:3"


def test_a_syntax_error_has_a_line(tmp_path):
    path = tmp_path / "mine.py"
    with pytest.raises(SyntaxError) as caught:
        compile("def f(:\n", str(path), "exec")
    assert place("".join(traceback.format_exception(caught.value))) == f"{path}:1"


def test_nothing_is_said_where_everything_ran():
    causes = Causes()
    assert causes.line() is None
    causes.dependants = {"b": "a", "c": "a"}
    assert causes.line() == "not run: 2 item(s) that depend on the failure above"
