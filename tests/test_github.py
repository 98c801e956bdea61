"""GitHub Actions: a step summary that is never dropped, annotations that say why, nothing anywhere else."""

import io
import re

import pytest
from test_report import found, row, verdict

from pruneaudit.report.github import MOST_ANNOTATIONS, SUMMARY_LIMIT, error_lines, step_summary, tell_github
from pruneaudit.report.results import Results
from pruneaudit.report.writer import markdown_sections

RULES = {"F321": {"claim": "Same rate, every step: 100 %", "source": "Wang et al."}}


def fails(row):
    return row["verdict"] in ("worse", "not comparable", "fail")


def results(verdicts=(), findings=(), cells=(), rules=RULES, **more):
    return Results([*cells] or [row(), row("tpp")], [*findings], [*verdicts], rules=rules, **more)


@pytest.fixture(scope="module")
def big():
    """A report of several sections, some of them long."""
    cells = [row(f"method-{number:04}", seed=seed) for number in range(300) for seed in range(2)]
    verdicts = [verdict(arms=("l1", f"method-{number:04}")) for number in range(300)]
    return results(verdicts, [found(verdict="fail")], cells)


def tell(results, tmp_path, **environment):
    """Annotations and step summary of a step."""
    output, path = io.StringIO(), tmp_path / "summary.md"
    given = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(path)} | environment
    tell_github(results, fails, tmp_path / "report", given, output)
    return output.getvalue(), path.read_text(encoding="utf-8") if path.exists() else None


# Where


@pytest.mark.parametrize("value", ["", "false", "1"])
def test_nothing_happens_outside_actions(tmp_path, value):
    assert tell(results([verdict("worse")]), tmp_path, GITHUB_ACTIONS=value) == ("", None)
    output = io.StringIO()
    summary = tmp_path / "summary.md"
    tell_github(results([verdict("worse")]), fails, tmp_path, {"GITHUB_STEP_SUMMARY": str(summary)}, output)
    assert output.getvalue() == "" and not summary.exists()


def test_a_step_without_a_summary_file_gets_its_annotations(tmp_path):
    output, summary = tell(results([verdict("worse")]), tmp_path, GITHUB_STEP_SUMMARY="")
    assert output.startswith("::error ") and summary is None


def test_a_summary_that_cannot_be_written_is_a_warning(tmp_path):
    output, _ = tell(results(), tmp_path, GITHUB_STEP_SUMMARY=str(tmp_path / "no" / "folder" / "summary.md"))
    assert output == "::warning title=pruneaudit::no step summary: No such file or directory\n"


def test_only_the_controller_tells(checkout, tmp_path):
    """Under xdist every worker has the same environment; annotations stand at the start of a line."""
    summary = tmp_path / "summary.md"
    selection = [
        "-k",
        "lenet5-digits and r0.5 and verdict",
        "--audit-methods",
        "l1,random",
        "--audit-protocols",
        "s3.2",
    ]
    outcome = checkout.pytest(
        *("suite", *selection, "--audit-seeds", "1", "--audit-budget", "smoke"),
        *("--audit-fail-on", "indeterminate", "-n", "2", "-q"),
        GITHUB_ACTIONS="true",
        GITHUB_STEP_SUMMARY=str(summary),
    )
    assert outcome.code == 1, outcome.text
    text = summary.read_text(encoding="utf-8")
    assert text.count("### pruneaudit\n") == 1 and text.count("#### Fails") == 1
    told = [line for line in outcome.lines if "::error" in line]
    assert len(told) == 1, outcome.text
    assert told[0].startswith(
        "::error title=l1 against random%3A indeterminate::lenet5-digits [smoke] s3.2 ratio 0.5: "
    )


# Step summary


def test_the_summary_begins_with_the_verdicts(tmp_path):
    _, text = tell(results([verdict("worse"), verdict(arms=("l1", "random"))], cells=[row(), row("tpp")]), tmp_path)
    lines = text.splitlines()
    assert lines[0] == "### pruneaudit"
    assert lines[2] == "2 attempted, 2 valid. Verdicts: 2 comparisons, 1 indeterminate, 1 worse."
    headings = [line for line in lines if line.startswith("#")]
    assert headings[1:3] == ["#### Fails", "#### Verdicts: lenet5-digits"]
    assert "- lenet5-digits s3.2 ratio 0.5: l1 against tpp: worse; what was found" in lines
    assert not any(re.match("##? ", line) for line in lines), "headings of the page's own"


def test_every_section_of_the_report_is_there(big, tmp_path):
    _, text = tell(big, tmp_path)
    for heading, body in markdown_sections(big):
        assert f"#### {heading}\n" in text and body in text
    assert "The rest is in" not in text


def test_long_sections_are_folded_and_short_ones_are_not(big, tmp_path):
    _, text = tell(big, tmp_path)
    verdicts, findings = (text.split(f"#### {name}")[1].split("#### ")[0] for name in ("Verdicts", "Required findings"))
    # GitHub needs the empty line to read Markdown inside.
    assert re.search(r"<details><summary>\d+ lines</summary>\n\nFirst arm", verdicts)
    assert verdicts.rstrip().endswith("|\n\n</details>")
    assert "<details>" not in findings
    assert text.count("<details>") == text.count("</details>") > 0


def test_failing_verdicts_are_listed_and_counted(tmp_path):
    rows = [verdict("worse", arms=("l1", f"<b>{number}")) for number in range(MOST_ANNOTATIONS + 3)]
    _, text = tell(results(rows), tmp_path)
    listed = text.split("#### Fails\n\n")[1].split("\n\n")[0].splitlines()
    assert len(listed) == MOST_ANNOTATIONS + 1 and listed[-1] == "- and 3 more"
    assert "&lt;b&gt;0" in listed[0] and "<b>" not in text
    assert "#### Fails" not in tell(results([verdict()]), tmp_path)[1].split("### pruneaudit")[2]


@pytest.mark.parametrize("limit", [100, 200, 300, 1000, 5000, 30_000, 40_000])
def test_a_summary_is_cut_between_sections(big, tmp_path, limit):
    text = step_summary(big, fails, tmp_path, limit)
    assert len(text.encode()) <= limit
    if not text:
        assert limit <= 200
        return
    whole = step_summary(big, fails, tmp_path)
    assert text != whole and text.startswith("### pruneaudit\n")
    kept, pointer = text.rsplit("The rest is in ", 1)
    assert pointer == f"`{tmp_path / 'report.md'}`: upload it as an artefact.\n"
    assert whole.startswith(kept) and kept.endswith("\n\n"), "cut between sections"
    assert kept.count("<details>") == kept.count("</details>")
    for part in kept.split("#### ")[1:]:
        assert part in whole.split("#### "), "whole sections only"


def test_as_much_as_fits_is_shown(big, tmp_path):
    whole = step_summary(big, fails, tmp_path)
    size = len(whole.encode())
    assert step_summary(big, fails, tmp_path, size) == whole
    assert "The rest is in" in step_summary(big, fails, tmp_path, size - 1)
    shown = [len(step_summary(big, fails, tmp_path, limit)) for limit in range(0, size + 1, 997)]
    assert shown == sorted(shown)


def test_a_summary_that_is_there_already_keeps_its_text_and_counts(tmp_path, monkeypatch):
    path = tmp_path / "summary.md"
    path.write_text("# before, ümlaut", encoding="utf-8")
    _, text = tell(results(), tmp_path)
    assert text.startswith("# before, ümlaut\n\n### pruneaudit\n")
    _, twice = tell(results(), tmp_path)
    assert twice.startswith(text) and twice.count("### pruneaudit\n") == 2


@pytest.mark.parametrize("room", [0, 1, 150, 300, 5000])
def test_with_what_is_there_the_summary_stays_below_the_limit(big, tmp_path, room):
    path = tmp_path / "summary.md"
    before = "é" * ((SUMMARY_LIMIT - room) // 2)
    path.write_text(before, encoding="utf-8")
    tell(big, tmp_path)
    assert path.stat().st_size <= SUMMARY_LIMIT
    text = path.read_text(encoding="utf-8")
    assert text.startswith(before) and (room > 150) == ("### pruneaudit" in text)


def test_a_huge_report_is_below_the_limit(tmp_path):
    verdicts = [verdict(arms=("l1", f"{number:08}" * 100)) for number in range(2000)]
    _, text = tell(results(verdicts, cells=[row()]), tmp_path)
    assert len(text.encode()) <= SUMMARY_LIMIT
    assert "Verdicts: 2000 comparisons" in text and "The rest is in" in text and "|" not in text


# Annotations


def test_verdicts_findings_and_cells_that_fail_are_annotated():
    broken = [row(seed=seed, status="failed", error="RuntimeError: it broke") for seed in range(3)]
    lines = error_lines(
        results(
            [verdict("worse", summary="-2 pp"), verdict()],
            [found(verdict="fail"), found(verdict="pass")],
            [row(), *broken],
            regressions=[verdict("worse", arms=("l1", "baseline"), labels=("smoke",))],
        ),
        fails,
    )
    assert lines == [
        "::error title=3 cells failed::lenet5-digits: RuntimeError: it broke",
        "::error title=l1 against tpp%3A worse::lenet5-digits s3.2 ratio 0.5: -2 pp",
        "::error title=l1 against baseline%3A worse::lenet5-digits [smoke] s3.2 ratio 0.5: what was found",
        "::error title=F321 Same rate%2C every step%3A 100 %25::lenet5-digits s3.2 ratio 0.5: l1: 0.01×4; tpp: 0.01×4",
    ]


def test_a_session_that_fails_nothing_has_no_annotations(tmp_path):
    output, _ = tell(results([verdict(), verdict("better")], [found()]), tmp_path)
    assert output == ""


def test_annotations_cannot_be_broken_out_of(tmp_path):
    """A new line would begin a command of its own; colons and commas end a property."""
    rogue = "50 %\r\n::set-output name=x::1,2"
    output, _ = tell(results([verdict("worse", arms=("l1", rogue), summary=rogue)]), tmp_path)
    (line,) = output.splitlines()
    head, _, message = line.removeprefix("::error title=").partition("::")
    escaped = "50 %25%0D%0A"
    assert head == f"l1 against {escaped}%3A%3Aset-output name=x%3A%3A1%2C2%3A worse"
    assert message.endswith(f"{escaped}::set-output name=x::1,2")


@pytest.mark.parametrize("failing", [MOST_ANNOTATIONS - 1, MOST_ANNOTATIONS, MOST_ANNOTATIONS + 1, 40])
def test_at_most_ten_annotations_and_a_count_of_the_rest(failing):
    lines = error_lines(results([verdict("worse", summary=f"{number}") for number in range(failing)]), fails)
    assert len(lines) == min(failing, MOST_ANNOTATIONS)
    if failing > MOST_ANNOTATIONS:
        assert lines[-1] == f"::error title=pruneaudit::{failing - MOST_ANNOTATIONS + 1} more failures in the report"
        assert lines[-2].endswith(f": {MOST_ANNOTATIONS - 2}")
    else:
        assert lines[-1].endswith(f": {failing - 1}")
