"""What a method of one's own starts from: ``pruneaudit new-method``, and ``check_method`` in its tests."""

import importlib
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from builders import catalog, write_method

from pruneaudit import FilterScore, Method, check_method, cli
from pruneaudit.catalog.discovery import MethodSource, suite_command
from pruneaudit.errors import ConfigError, MethodError
from pruneaudit.method import conformance
from pruneaudit.method.answers import Answer
from pruneaudit.method.conformance import METHOD_CHECKS, check
from pruneaudit.method.scaffold import new_method
from pruneaudit.training.runtime import Runtime

ROOT = Path(__file__).resolve().parent.parent
L1 = "layer.weight.abs().flatten(1).sum(dim=1)"
SCORE = "    def score(self, layer, task):\n"


def outside(folder, *arguments, python=sys.executable, timeout=900):
    """Run Python as a user would who has pruneaudit installed and works somewhere else."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PRUNEAUDIT_"))}
    return subprocess.run(
        [python, *map(str, arguments)],
        cwd=folder,
        env=environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def made(folder, body, name="broken"):
    """The class of a method file with this body."""
    return MethodSource(name, path=Path(write_method(folder, name, body))).cls


# check_method


@pytest.mark.parametrize("name", ["l1", "random", "unpruned", "tpp", "scratch", "scratch-b"])
def test_built_in_methods_keep_the_contract(name):
    check_method(catalog().method(name).cls)


def test_the_tests_around_it_keep_their_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        check_method(catalog().method("l1").cls)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_instance_stands_for_its_class(tmp_path):
    cls = made(tmp_path, "    def score(self, layer, task):\n        return layer.weight.sum()\n")
    with pytest.raises(MethodError, match=r"^meets-target: method 'made' scored layer 'conv1' with shape"):
        check_method(cls())


@pytest.mark.parametrize("given", [42, "l1", int, None, FilterScore, Method], ids=str)
def test_what_is_no_method_is_told(given):
    with pytest.raises(MethodError) as caught:
        check_method(given)
    assert "\n" not in str(caught.value)


def test_an_unknown_workload_is_told():
    with pytest.raises(ConfigError, match=r"unknown workload 'lenet5-digit'\. Did you mean 'lenet5-digits'"):
        check_method(catalog().method("l1").cls, "lenet5-digit")


def test_a_workload_that_the_method_skips_is_told(tmp_path):
    cls = made(
        tmp_path, "    def skip(self, workload):\n        return 'needs wings'\n\n" + SCORE + f"        return {L1}\n"
    )
    with pytest.raises(MethodError, match=r"'made' does not apply to lenet5-digits \(needs wings\); name another"):
        check_method(cls)


BROKEN = {
    "no docstring": ("describes-itself", f"    __doc__ = None\n\n{SCORE}        return {L1}\n"),
    "wrong count": (
        "meets-target",
        "    def prune(self, task):\n        return {layer.name: [0] for layer in task.layers}\n\n"
        + SCORE
        + "        ...\n",
    ),
    "nan": ("meets-target", f"{SCORE}        return {L1} * float('nan')\n"),
    "raises": ("meets-target", f"{SCORE}        return layer.no_such_thing\n"),
    "nondeterministic": ("deterministic", f"{SCORE}        return {L1}.bernoulli(0.5) + {L1}.random_(1000)\n"),
    "takes undeclared steps": (
        "spends-its-budget",
        "    def budget(self, workload):\n        return Budget(steps=2)\n\n"
        "    def prune(self, task):\n        task.train(steps=1)\n        return super().prune(task)\n\n"
        f"{SCORE}        return {L1}\n",
    ),
    "rewrites weights": ("leaves-weights", f"{SCORE}        layer.weight.mul_(0.5)\n        return {L1}\n"),
    "remembers in the module": (
        "remembers-nothing",
        f"{SCORE}        return MEMORY.setdefault(layer.name, {L1}.detach().clone())\n\n\nMEMORY = {{}}\n",
    ),
    "remembers in the class": (
        "remembers-nothing",
        f"    memory = {{}}\n\n{SCORE}        return self.memory.setdefault(layer.name, {L1}.detach().clone())\n",
    ),
    "remembers at each ratio": (
        "remembers-nothing",
        f"{SCORE}        key = (layer.name, task.ratio)\n"
        f"        return MEMORY.setdefault(key, {L1}.detach().clone())\n\n\nMEMORY = {{}}\n",
    ),
    "remembers each network": (
        "remembers-nothing",
        f"{SCORE}        key = (layer.name, float(layer.weight.sum()))\n"
        f"        return MEMORY.setdefault(key, {L1} * (0.7 - task.ratio))\n\n\nMEMORY = {{}}\n",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_method_is_told_by_the_right_check(tmp_path, case):
    expected, body = BROKEN[case]
    with pytest.raises(MethodError) as caught:
        check_method(made(tmp_path, body))
    message = str(caught.value)
    assert message.startswith(f"{expected}: ") and "\n" not in message
    assert "made" in message


ADVISED = {
    "describes-itself: method 'made': JSON cannot hold its hyper-parameter where, of type PosixPath, and it cannot": (
        "    def __init__(self):\n        import pathlib\n        self.share, self.where = 0.5, pathlib.Path('/')\n\n"
        f"{SCORE}        return {L1}\n"
    ),
    "masked-equals-shrunk: method 'made' raised RuntimeError: .* [(]this check prunes a float64 network: follow ": (
        f"{SCORE}        found = layer.weight.new_zeros(len(layer.weight), dtype=__import__('torch').float32)\n"
        f"        found[list(range(len(found)))] = {L1}\n        return found\n"
    ),
    "behaves: method 'made' changes 'conv1.bias' outside metered training; train by task.train[(][)], or set": (
        "    def budget(self, workload):\n        return Budget(steps=1)\n\n"
        "    def prune(self, task):\n        task.train(steps=1)\n        task.layers[0].bias.data.add_(1)\n"
        f"        return super().prune(task)\n\n{SCORE}        return {L1}\n"
    ),
}


@pytest.mark.parametrize("message", ADVISED)
def test_a_broken_method_is_told_what_to_do(tmp_path, message):
    with pytest.raises(MethodError, match=f"^{message}"):
        check_method(made(tmp_path, ADVISED[message]))


def test_memory_of_a_file_is_told_in_the_suite_as_well(tmp_path):
    spec = write_method(tmp_path, "forgetful", BROKEN["remembers in the module"][1])
    with pytest.raises(MethodError, match=r"'forgetful' answers otherwise at ratio 0\.9, seed 1, after it pruned at"):
        check("remembers-nothing", catalog(spec), "forgetful", "lenet5-digits", Runtime())


def test_methods_that_share_a_file_are_each_checked_as_they_are(tmp_path, monkeypatch):
    # Imported once more, the file would not say which of them is meant.
    score = f"    def score(self, layer, task):\n        return {L1}\n"
    write_method(tmp_path, "shared_by_two", f"{score}\n\nclass Other(FilterScore):\n    'Another.'\n\n{score}")
    inner = f"    class Inner(FilterScore):\n        'Inside.'\n\n{textwrap.indent(score, '    ')}\n    return Inner\n"
    write_method(tmp_path, "with_an_inner_one", f"{SCORE}        return -{L1}\n\n\ndef inner():\n{inner}")
    monkeypatch.syspath_prepend(tmp_path)
    two, outer = importlib.import_module("shared_by_two"), importlib.import_module("with_an_inner_one")
    for cls in (two.Made, two.Other, outer.Made, outer.inner()):
        check_method(cls)


def test_memory_in_an_imported_module_is_told(tmp_path, monkeypatch):
    write_method(tmp_path, "imported_with_memory", BROKEN["remembers in the module"][1])
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MethodError, match=r"^remembers-nothing: "):
        check_method(importlib.import_module("imported_with_memory").Made)


def test_a_script_that_checks_its_own_method_comes_to_an_end(tmp_path, warm):
    body = f"{SCORE}        return {L1}\n\n\nfrom pruneaudit import check_method\n\ncheck_method(Made)\nprint('kept')\n"
    done = outside(tmp_path, write_method(tmp_path, "script", body), python=warm)
    # Once by the script, and once for each time that it is imported anew.
    assert (done.returncode, done.stdout.split()) == (0, ["kept"] * 4), done.stdout


def test_a_random_control_must_not_prefer_wide_layers(monkeypatch):
    def by_rank(bench, model, ratio, seed=0):
        # Ranks that are compared across layers: the narrow one loses nearly all (Torch-Pruning issue 498).
        return Answer({"conv1": [0], "conv2": list(range(16)), "conv3": list(range(60))}, {}), None

    run = METHOD_CHECKS["uniform-over-width"]
    for name in ("random", "random-ranks"):
        bench = conformance.Bench(catalog().method("random"), catalog().workload("lenet5-digits"), Runtime())
        bench.source = MethodSource(name, path=catalog().method("random").path)
        monkeypatch.setattr(conformance.Bench, "prune", by_rank)
        with pytest.raises(MethodError, match=f"'{name}' keeps 17% of the 6 filters of layer 'conv1'; .* 50% of every"):
            run(bench)
    # Any other method may.
    bench.source = MethodSource("randomised", path=catalog().method("random").path)
    run(bench)


# new-method


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run ``pruneaudit new-method`` in this process and an empty folder: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pruneaudit", "new-method", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        return code, *capsys.readouterr()

    return call


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_works_at_once_for_a_user_elsewhere(run, tmp_path, warm):
    code, out, err = run("my-pruner")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "wrote my_pruner.py",
        "wrote test_my_pruner.py",
        "next: pytest test_my_pruner.py",
        f'then: {suite_command()} --audit-method my_pruner.py -k "resnet20-digits and my-pruner"',
    ]
    assert names(tmp_path) == ["my_pruner.py", "test_my_pruner.py"]
    session = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_pruner.py")
    done = outside(tmp_path, *session, python=warm)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
    # An edit that breaks the contract is told by the same test, module-level memory included.
    path = tmp_path / "my_pruner.py"
    rule = "layer.weight.flatten(1).norm(dim=1)"
    path.write_text(path.read_text().replace(rule, f"MEMORY.setdefault(layer.name, {rule})") + "\n\nMEMORY = {}\n")
    done = outside(tmp_path, *session, python=warm)
    assert done.returncode == 1 and "remembers-nothing: method 'my-pruner'" in done.stdout, done.stdout


def test_what_is_written_is_a_method_of_the_catalogue(tmp_path):
    identity, method, _ = new_method("MyPruner", tmp_path)
    found = catalog(str(method)).method(identity).create()
    assert (identity, type(found).__name__) == ("my-pruner", "MyPruner")
    assert found.summary().startswith("Smallest L2 norm first.")


@pytest.mark.parametrize("name", ["a", "my-pruner", "my-pruner-with-a-name-as-long-as-a-sentence"])
@pytest.mark.parametrize("place", ["elsewhere", "methods"])
def test_what_is_written_is_clean(tmp_path, name, place):
    # In methods/ of a checkout pruneaudit is the project's own package, elsewhere an installed one.
    root = tmp_path / "checkout"
    (root / "pruneaudit").mkdir(parents=True)
    (root / "pruneaudit" / "__init__.py").touch()
    (root / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folder = root / "methods" if place == "methods" else tmp_path / "elsewhere"
    new_method(name, folder)
    settings = [] if place == "methods" else ["--config", ROOT / "pyproject.toml"]
    for command in (["check"], ["format", "--check"]):
        done = outside(folder, "-m", "ruff", *command, "--no-cache", *settings, ".")
        assert done.returncode == 0, done.stdout


def test_its_hints_work_when_they_are_taken(tmp_path):
    _, path, _ = new_method("trained", tmp_path)
    text = path.read_text().replace("import FilterScore", "import Budget, PublishedRecipe, TrainedMethod")
    text = text.replace("(FilterScore)", "(TrainedMethod)")
    hints = re.compile(r"^    # ((?:published|    workload|\)|def |    \"\"\"|    return|    task\.).*)$", re.MULTILINE)
    text, taken = hints.subn(r"    \1", text)
    assert taken == 10
    path.write_text(text)
    source = catalog(str(path)).method("trained")
    check_method(source.cls)
    workload = catalog().workload("lenet5-digits")
    assert source.create().budget(workload).steps == workload.prune.steps
    assert source.create().published.epochs == 40


@pytest.mark.parametrize("name", ["my-pruner", "my_pruner", "MyPruner"])
def test_spellings_of_a_name_are_one(run, tmp_path, name):
    assert run(name, "--to", tmp_path / "new" / "folder")[0] == 0
    assert names(tmp_path / "new" / "folder") == ["my_pruner.py", "test_my_pruner.py"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("l1", "methods/l1.py is method 'l1' already"),
        ("L1", "method 'l1' already"),
        ("greg_1", "method 'greg-1' already"),
        ("my pruner", "use letters, digits"),
        ("my.pruner", "use letters, digits"),
        ("../pruner", "use letters, digits"),
        ("2fast", "a letter first"),
        ("", "use letters"),
        ("größer", "use letters"),
        ("x" * 300, "long"),
        ("lambda", "Python's own"),
        ("json", "would hide the installed module 'json'"),
        ("numpy", "would hide the installed module 'numpy'"),
        ("scratch-c", "'scratch-…' is kept for arms that train from random weights"),
        ("filter-score", "has a FilterScore of its own"),
    ],
)
def test_a_name_that_cannot_be_used_is_one_line(run, tmp_path, name, said):
    code, out, err = run(name)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and err.startswith("pruneaudit: ") and said in err
    assert names(tmp_path) == []


@pytest.mark.parametrize("there", ["my_pruner.py", "test_my_pruner.py"])
def test_a_file_that_is_there_stays_and_nothing_is_written(run, tmp_path, there):
    (tmp_path / there).write_text("precious\n")
    code, out, err = run("my-pruner")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert f"{there} is there already; choose another name, or another folder with --to" in err
    assert names(tmp_path) == [there] and (tmp_path / there).read_text() == "precious\n"


def test_both_files_or_none(run, tmp_path, monkeypatch):
    write = Path.open

    def full(path, *arguments, **named):
        if path.name == "test_my_pruner.py":
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", full)
    code, _, err = run("my-pruner")
    assert code == 2 and "No space left on device; choose another folder with --to" in err
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = run("my-pruner", "--to", "file/folder")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "--to" in err
