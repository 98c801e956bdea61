"""The layout of results.json that programs may rely on."""

import json
from pathlib import Path

import jsonschema
import pytest
from test_report import (
    CATALOG,
    filled,
    ledger,  # noqa: F401 (a fixture)
)

from pruneaudit.report.results import RESULTS_VERSION, gather_ledger
from pruneaudit.report.schema import ResultsFile, schema
from pruneaudit.report.writer import write

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "docs" / "results.schema.json"
CURRENT = [
    path
    for path in sorted((ROOT / "reports" / "reference").glob("*/results.json"))
    if json.loads(path.read_text(encoding="utf-8"))["schema_version"] == RESULTS_VERSION
]


def test_the_published_schema_is_the_one_of_the_code():
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == schema(), (
        "run: pruneaudit report --schema > docs/results.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", CURRENT, ids=lambda path: path.parent.name)
def test_committed_results_fit(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema()).validate(content)
    assert len(ResultsFile.model_validate(content).cells) == len(content["cells"])


def test_some_committed_results_are_of_this_layout():
    assert "digits" in {path.parent.name for path in CURRENT}


@pytest.fixture
def content(ledger, tmp_path):  # noqa: F811
    write(gather_ledger(CATALOG, filled(ledger)), tmp_path)
    return json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))


def test_what_a_report_writes_fits(content):
    # Cells that failed and cells of another budget are among them.
    assert {row["status"] for row in content["cells"]} == {"ok", "failed"}
    jsonschema.Draft202012Validator(schema()).validate(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["cells"][0].pop("accuracy"),
        lambda content: content["cells"][0].update(accuracy="high"),
        lambda content: content["cells"][0].update(new_column=1),
        lambda content: content["findings"][0].update(verdict="maybe"),
        lambda content: content.update(schema_version=RESULTS_VERSION - 1),
        lambda content: content.pop("verdicts"),
    ],
    ids=["missing", "type", "unknown", "word", "version", "part"],
)
def test_what_does_not_fit_is_told(content, change):
    change(content)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema()).validate(content)
