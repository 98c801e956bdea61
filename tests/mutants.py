"""Changes every rule a little, in each way in turn, and sees that a test of rules fails: ``make mutants``.

A rule that no test holds can become another one unnoticed. What is changed: comparisons, conjunctions, negations, sums,
verdicts, ``any`` and ``all``, and the modules' tolerances; texts are not. Tests are collected once, and run in this
process: a mutant is a function whose code was exchanged, and is tried by the tests that ran that function when it was
as it should be, until one of them fails.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import pkgutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType

import pytest

from pruneaudit.audit import rules

#: Mutants that are the same rule, by why: no test can tell them apart.
EQUIVALENT: dict[str, str] = {
    "attribution._sign: value > 1e-09 -> value >= 1e-09": "no mean of accuracies is a billionth of a point",
    "attribution._sign: value < -1e-09 -> value <= -1e-09": "no mean of accuracies is a billionth of a point",
    "comparability.same_total_macs: abs(ours - theirs) <= epoch / 2 * (1 + 1e-09) -> "
    "abs(ours - theirs) < epoch / 2 * (1 + 1e-09)": "no whole number of MACs lies on a bound that was widened a little",
    "measurement._flat: metric.merit(slope) > 0 -> metric.merit(slope) >= 0": "a slope of zero is never significant",
    "measurement._flat: p < ALPHA -> p <= ALPHA": "no t test of a curve gives alpha itself",
}

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
}
JOINED: dict[type[ast.boolop], type[ast.boolop]] = {ast.And: ast.Or, ast.Or: ast.And}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
}
NAMED = {"any": "all", "all": "any", "min": "max", "max": "min"}
SAID = {"pass": "fail", "fail": "pass", "not measured": "fail"}


def others(node: ast.expr) -> Iterator[ast.expr]:
    """What an expression could be by mistake."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            changed = copy.deepcopy(node)
            changed.ops[place] = COMPARED[type(operator)]()
            yield changed
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(JOINED[type(node.op)](), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        yield ast.BinOp(node.left, COMPUTED[type(node.op)](), node.right)
    elif isinstance(node, ast.Name) and node.id in NAMED:
        yield ast.Name(NAMED[node.id], node.ctx)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in SAID:
        yield ast.Constant(SAID[node.value])


def replaced(tree: ast.FunctionDef) -> Iterator[tuple[str, ast.FunctionDef]]:
    """A function with one expression exchanged, for each and in each way; what was exchanged is named."""
    texts = _texts(tree)
    for place, node in enumerate(ast.walk(tree)):
        # What a text shows is no verdict; a decorator has registered the rule already.
        if not isinstance(node, ast.expr) or id(node) in texts:
            continue
        for other in others(node):
            changed = copy.deepcopy(tree)
            target = next(one for number, one in enumerate(ast.walk(changed)) if number == place)
            ast.fix_missing_locations(ast.copy_location(other, node))
            _Exchange(target, other).visit(changed)
            yield f"{ast.unparse(node)} -> {ast.unparse(other)}", changed


def _texts(tree: ast.FunctionDef) -> set[int]:
    """Expressions of which texts are made, decorators and types."""
    found = [one for one in ast.walk(tree) if isinstance(one, ast.JoinedStr)]
    found += [one for part in ast.walk(tree) if isinstance(part, ast.FunctionDef) for one in part.decorator_list]
    found += [part.annotation for part in ast.walk(tree) if isinstance(part, ast.AnnAssign)]
    found += [part.returns for part in ast.walk(tree) if isinstance(part, ast.FunctionDef) and part.returns]
    return {id(inner) for one in found for inner in ast.walk(one)}


class _Exchange(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, before: ast.AST, after: ast.AST) -> None:
        self._before, self._after = before, after

    def visit(self, node: ast.AST) -> ast.AST:
        return self._after if node is self._before else super().visit(node)


@dataclass
class Mutant:
    """A change, of what, how it is made and how it is taken back."""

    name: str
    of: set[CodeType]
    make: Callable[[], None]
    undo: Callable[[], None]


def mutants(module: ModuleType) -> Iterator[Mutant]:
    """All of a module of rules."""
    path = Path(str(module.__file__))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    # What is frozen (`conftest.py`) is in no list of objects.
    gc.unfreeze()
    living = {
        one.__code__.co_qualname: one
        for one in gc.get_objects()
        if isinstance(one, FunctionType) and one.__code__.co_filename == str(path)
    }
    for part in tree.body:
        if isinstance(part, ast.FunctionDef):
            function = living[part.name]
            original = function.__code__
            for name, changed in replaced(part):
                code = _compiled(changed, path, part.name)

                def make(function: FunctionType = function, code: CodeType = code) -> None:
                    function.__code__ = code

                def undo(function: FunctionType = function, original: CodeType = original) -> None:
                    function.__code__ = original

                yield Mutant(f"{path.stem}.{part.name}: {name}", {original}, make, undo)
        elif isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
            constant, value = part.targets[0].id, getattr(module, part.targets[0].id)
            readers = {one.__code__ for one in living.values() if constant in one.__code__.co_names}
            for factor in (0.5, 2) if type(value) in (int, float) else ():
                new = type(value)(value * factor)

                def make_constant(constant: str = constant, new: float = new) -> None:
                    setattr(module, constant, new)

                def undo_constant(constant: str = constant, value: float = value) -> None:
                    setattr(module, constant, value)

                yield Mutant(f"{path.stem}: {constant} = {new}", readers, make_constant, undo_constant)


def _compiled(changed: ast.FunctionDef, path: Path, name: str) -> CodeType:
    changed = copy.copy(changed)
    changed.decorator_list = []
    future = ast.ImportFrom("__future__", [ast.alias("annotations")], 0)
    module = ast.fix_missing_locations(ast.Module([future, changed], []))
    code = compile(module, str(path), "exec")
    return next(one for one in code.co_consts if isinstance(one, CodeType) and one.co_name == name)


@dataclass
class Test:
    """A test that needs nothing but its parameters."""

    item: pytest.Function
    runs: set[CodeType] = field(default_factory=set)
    seconds: float = 0.0
    kills: int = 0

    def fails(self) -> bool:
        """Whether it does."""
        try:
            self.item.obj(**self.item.callspec.params if hasattr(self.item, "callspec") else {})
        except KeyboardInterrupt:
            raise
        except BaseException:
            return True
        return False


class Court:
    """Tries all mutants instead of running the tests."""

    def __init__(self, modules: list[ModuleType], only: str) -> None:
        self.modules, self.only = modules, only
        self.survivors: list[str] = []
        self.same: set[str] = set()
        self.killed: dict[str, int] = defaultdict(int)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        # Not before pytest, which has to see its plugins first.
        from hypothesis import is_hypothesis_test

        files = {str(module.__file__) for module in self.modules}
        functions = [item for item in session.items if isinstance(item, pytest.Function)]
        given = [set(item.callspec.params) if hasattr(item, "callspec") else set() for item in functions]
        tests = [
            Test(item)
            for item, names in zip(functions, given, strict=True)
            # Fixtures that all tests use are not theirs to ask for. Properties tried on a hundred cases are slow.
            if set(item._fixtureinfo.argnames) <= names and not is_hypothesis_test(item.obj)
        ]
        for test in tests:

            def hear(frame: FrameType, _event: str, _argument: object, seen: set[CodeType] = test.runs) -> None:
                if frame.f_code.co_filename in files:
                    seen.add(frame.f_code)

            began = time.perf_counter()
            sys.settrace(hear)
            try:
                failed = test.fails()
            finally:
                sys.settrace(None)
            test.seconds = time.perf_counter() - began
            assert not failed, f"{test.item.nodeid} fails on the rules as they are"
        print(f"{len(tests)} tests, {sum(test.seconds for test in tests):.0f} s", flush=True)
        for module in self.modules:
            for mutant in list(mutants(module)):
                if self.only in mutant.name:
                    self.judge(mutant, tests)
        return True

    def forget(self) -> None:
        """Nothing that was found out by an earlier rule is known any more."""
        made = [sys.modules[name] for name in ("builders", "rogues.records")]
        for value in [value for module in (*self.modules, *made) for value in vars(module).values()]:
            if hasattr(value, "cache_clear"):
                value.cache_clear()

    def judge(self, mutant: Mutant, tests: list[Test]) -> None:
        """Try one: tests that killed many come first, then quick ones."""
        if mutant.name in EQUIVALENT:
            self.same.add(mutant.name)
            return
        able = [test for test in tests if mutant.of & test.runs]
        mutant.make()
        self.forget()
        try:
            for test in sorted(able, key=lambda test: (-test.kills, test.seconds)):
                if test.fails():
                    test.kills += 1
                    self.killed[mutant.name.partition(":")[0]] += 1
                    return
        finally:
            mutant.undo()
            self.forget()
        self.survivors.append(mutant.name)
        print(f"survives: {mutant.name}", flush=True)


def main() -> int:
    """Exit status 1 where a mutant survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose name has this, such as 'honesty.' or a function")
    only = parser.parse_args().only
    names = [found.name for found in pkgutil.iter_modules(rules.__path__)]
    court = Court([importlib.import_module(f"{rules.__name__}.{name}") for name in names], only)
    here = Path(__file__).resolve().parent
    began = time.perf_counter()
    status = pytest.main(
        ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", *map(str, sorted(here.glob("test_rules*.py")))],
        [court],
    )
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return int(status)
    killed, survivors = sum(court.killed.values()), len(court.survivors)
    print(
        f"{killed} mutants of {len(court.killed)} functions and modules killed, {survivors} survive, "
        f"{len(court.same)} are the same rule; {time.perf_counter() - began:.0f} s"
    )
    gone = [name for name in EQUIVALENT if only in name and name not in court.same]
    print("".join(f"no such mutant any more: {name}\n" for name in gone), end="")
    return int(bool(survivors or gone) or not killed)


if __name__ == "__main__":
    sys.exit(main())
