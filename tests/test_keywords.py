"""``-k`` before items are made: what it may select is kept, and little else."""

import pytest
from _pytest.mark.expression import Expression
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.plugin.keywords import MOST_KEYWORDS, absent_ratios, selectable

WORKLOADS = ["lenet5-digits", "resnet20-digits", "resnet56-digits", "resnet56-cifar10"]
METHODS = ["l1", "l1-global", "tpp", "scratch-b"]
PROTOCOLS = ["s3.2", "sx-b"]
RULES = ["F101", "F322"]
STATIC = {"suite", "test_cells.py", "test_cell", "parametrize"}
IDS = {
    workload: [
        f"test_cell[{workload}-{method}-{protocol}-r{ratio}-{end}]"
        for method in (*METHODS, "l1-vs-tpp")
        for protocol in PROTOCOLS
        for ratio in ("0.5", "0.9")
        for end in ("seed0", "seed12", *RULES)
    ]
    for workload in WORKLOADS
}


def chosen(expression):
    return selectable(expression, "test_cell", WORKLOADS, STATIC, [*METHODS, *PROTOCOLS, *RULES, "vs"])


def matching(expression):
    """Workloads of which pytest would select some item."""
    compiled = Expression.compile(expression)

    def selected(name):
        names = [text.lower() for text in (*STATIC, name)]
        return compiled.evaluate(lambda keyword, **_: any(keyword.lower() in text for text in names))

    return [workload for workload in WORKLOADS if any(map(selected, IDS[workload]))]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("", WORKLOADS),
        ("resnet56", WORKLOADS[2:]),
        ("ResNet56 and TPP", WORKLOADS[2:]),
        ("not digits", WORKLOADS[3:]),
        ("resnet56 and digits and (l1 or tpp)", WORKLOADS[2:3]),
        ("lenet5-digits-l1-s3.2-r0.5-seed0", WORKLOADS[:1]),
        ("digits-scratch", WORKLOADS[:3]),
        ("test_cell[lenet5", WORKLOADS[:1]),
        ("l1-vs-tpp and not resnet", WORKLOADS[:1]),
        ("lenet5-digits and conformance", []),
        ("nonsense", []),
        ("not nonsense", WORKLOADS),
        ("suite and F322", WORKLOADS),
    ],
)
def test_workloads_of_an_expression(expression, expected):
    assert chosen(expression) == expected


@pytest.mark.parametrize("expression", ["and", "(", "l1 tpp", "mark(x=1) and"])
def test_an_expression_that_pytest_will_refuse_changes_nothing(expression):
    assert chosen(expression) == WORKLOADS


def test_very_many_keywords_change_nothing():
    assert chosen(" or ".join(f"word{number}" for number in range(MOST_KEYWORDS + 1))) == WORKLOADS


def parts():
    """Pieces of ids as a user may type them: whole words, and cuts through several."""
    whole = st.sampled_from(
        [*WORKLOADS, *METHODS, *PROTOCOLS, *RULES, "seed1", "r0.5", "cell", "nothing", "test_cell["]
    )

    @st.composite
    def cut(draw):
        text = draw(st.sampled_from([name for names in IDS.values() for name in names]))
        start = draw(st.integers(0, len(text) - 2))
        piece = text[start : draw(st.integers(start + 1, min(len(text), start + 12)))]
        return piece if piece.strip("-.[]") else "l1"

    return st.one_of(whole, cut()).filter(lambda word: word not in ("and", "or", "not"))


@settings(deadline=None, max_examples=300)
@given(
    st.recursive(
        parts(),
        lambda inner: st.one_of(
            inner.map(lambda text: f"not ({text})"),
            st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
                lambda three: f"({three[0]}) {three[1]} ({three[2]})"
            ),
        ),
        max_leaves=5,
    )
)
def test_nothing_that_pytest_would_select_is_left_out(expression):
    assert set(matching(expression)) <= set(chosen(expression))


def test_absent_ratios_are_named_with_those_that_there_are():
    ratios = {"lenet5-digits": (0.5, 0.9), "resnet20-digits": (0.6,)}
    line = absent_ratios("lenet5-digits and (r0.6 or r0.5 or r0.8)", ratios)
    assert line.startswith("no ratio 0.6,0.8: lenet5-digits has 0.5, 0.9; --audit-ratios 0.6,0.8 adds")
    assert absent_ratios("r0.6 and mine", ratios) is None
    assert "resnet20-digits has 0.6" in absent_ratios("r0.7", ratios)
    assert absent_ratios("lenet5-digits and s3.2", ratios) is None
