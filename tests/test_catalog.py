"""Discovery: names, specs, collisions and digests."""

import importlib.metadata
import subprocess
import sys
import textwrap

import pytest

from pruneaudit.catalog import discovery as catalog_module
from pruneaudit.catalog.cells import Selection, pairs
from pruneaudit.catalog.discovery import Catalog, MethodSource, content_root
from pruneaudit.catalog.names import CORE_METHODS, finder, method_id
from pruneaudit.errors import ConfigError, MethodError
from pruneaudit.sources import code_digest

METHOD = """
import torch
from pruneaudit import FilterScore

class {name}(FilterScore):
    "Keeps the first filters."

    def score(self, layer, task):
        return -torch.arange(layer.channels, dtype=torch.float64)
"""


def write(path, text):
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def test_names_need_no_torch():
    code = """
        import sys
        import pruneaudit
        from pruneaudit.catalog.discovery import Catalog
        catalog = Catalog()
        names = [*catalog.methods, *catalog.protocols, *catalog.workloads]
        catalog.select_methods("core"), catalog.select_protocols("all")
        assert {"l1", "s3.2", "resnet56-cifar10"} <= set(names), names
        for workload in catalog.workloads.values():
            workload.scaled("smoke")
        loaded = {"torch", "numpy", "torchvision"} & set(sys.modules)
        assert not loaded, loaded
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_shipped_names_are_sorted_ids():
    catalog = Catalog()
    assert list(catalog.methods) == sorted(catalog.methods)
    assert set(CORE_METHODS) | {"greg-1", "unpruned"} <= set(catalog.methods)
    for names in (catalog.methods, catalog.protocols, catalog.workloads):
        assert all(name == name.lower() and "_" not in name for name in names)


def test_every_shipped_method_can_be_created_and_says_what_it_is():
    catalog = Catalog()
    for name in catalog.methods:
        method = catalog.method(name).create()
        assert method.name == name
        assert method.summary() == (method.__doc__ or "").splitlines()[0] != ""


def test_create_gives_a_fresh_instance():
    source = Catalog().method("l1")
    assert source.create() is not source.create()


@pytest.mark.parametrize(
    ("kind", "wrong", "nearest"),
    [("method", "greg1", "greg-1"), ("protocol", "s32", "s3.2"), ("workload", "resnet56-cifar100", "resnet56-cifar10")],
)
def test_wrong_name_gets_did_you_mean(kind, wrong, nearest):
    catalog = Catalog()
    with pytest.raises(ConfigError) as caught:
        getattr(catalog, kind)(wrong)
    message = str(caught.value)
    assert f"unknown {kind} '{wrong}'. Did you mean '{nearest}'?" in message
    assert "\n" not in message


def test_name_far_from_all_lists_what_exists():
    with pytest.raises(ConfigError, match=r"unknown method 'zzzz'\. Known: .*l1.*tpp"):
        Catalog().method("zzzz")


@pytest.mark.parametrize(
    ("stem", "name"),
    [("greg_1", "greg-1"), ("l1", "l1"), ("MyPruner", "my-pruner"), ("GReg1", "greg1"), ("TPP", "tpp")],
)
def test_method_id(stem, name):
    assert method_id(stem) == name


# Choices


def test_select_methods():
    path_free = Catalog()
    assert path_free.select_methods("core") == CORE_METHODS
    assert path_free.select_methods("all") == tuple(path_free.methods)
    assert path_free.select_methods(" tpp, l1,tpp,") == ("tpp", "l1")
    with pytest.raises(ConfigError, match="Did you mean 'random'"):
        path_free.select_methods("l1,randm")


def test_select_protocols():
    catalog = Catalog()
    # What does not retrain is another question, and is named.
    assert catalog.select_protocols("all") == tuple(sorted(catalog.protocols.keys() - {"pt"}))
    assert catalog.select_protocols("pt,s1") == ("pt", "s1")
    assert catalog.select_protocols("s3.2, s1") == ("s3.2", "s1")


def test_extra_methods_join_every_choice(tmp_path):
    path = write(tmp_path / "my_pruner.py", METHOD.format(name="Mine"))
    catalog = Catalog(extra_methods=(str(path),))
    assert catalog.extra_names == ("my-pruner",)
    assert catalog.select_methods("core") == (*CORE_METHODS, "my-pruner")
    assert catalog.select_methods("l1") == ("l1", "my-pruner")
    assert catalog.select_methods("all").count("my-pruner") == 1


# Cross-validated recipes, studies


@pytest.mark.parametrize("method", ["l1", "random", "greg-1"])
def test_a_cross_validated_protocol_is_s32_with_another_recipe(method):
    catalog = Catalog()
    made, usual = catalog.protocol(f"xv-{method}"), catalog.protocol("s3.2")
    assert (made.name, made.retraining, made.recipe_of) == (f"xv-{method}", "method", method)
    differing = {name for name in type(made).model_fields if getattr(made, name) != getattr(usual, name)}
    assert differing == {"name", "title", "source", "retraining", "recipe_of"}, "it requires what S3.2 requires"
    assert type(made).model_validate(made.model_dump()) == made


def test_cross_validated_protocols_are_chosen_by_name_only():
    catalog = Catalog()
    assert catalog.select_protocols("xv-l1, s3.2,xv-l1") == ("xv-l1", "s3.2")
    assert not any(name.startswith("xv-") for name in (*catalog.select_protocols("all"), *catalog.strictness))
    with pytest.raises(ConfigError, match=r"unknown method 'tp'\. Did you mean 'tpp'"):
        catalog.protocol("xv-tp")


def test_a_users_method_has_a_cross_validated_protocol(tmp_path):
    path = write(tmp_path / "my_pruner.py", METHOD.format(name="Mine"))
    assert Catalog(extra_methods=(str(path),)).protocol("xv-my-pruner").recipe_of == "my-pruner"


def test_studies_are_found_by_name_and_by_file(tmp_path):
    folder = tmp_path / "protocols" / "studies"
    folder.mkdir(parents=True)
    write(folder / "yearly.toml", 'against = ["l1"]\n')
    elsewhere = write(tmp_path / "mine.toml", 'against = ["tpp"]\n')
    catalog = Catalog(root=tmp_path)
    assert list(catalog.studies) == ["yearly"]
    assert (catalog.study("yearly").name, catalog.study("yearly").against) == ("yearly", ("l1",))
    assert (catalog.study(str(elsewhere)).name, catalog.study(str(elsewhere)).against) == ("mine", ("tpp",))
    with pytest.raises(ConfigError, match=r"unknown study 'yearley'\. Did you mean 'yearly'"):
        catalog.study("yearley")
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        catalog.study(str(tmp_path / "nowhere.toml"))
    assert catalog.protocols == {}, "a study is no protocol"


# Specs


def test_file_spec(tmp_path):
    path = write(tmp_path / "my_pruner.py", METHOD.format(name="Mine"))
    source = Catalog(extra_methods=(str(path),)).method("my-pruner")
    assert source.cls.__name__ == "Mine"
    assert source.create().name == "my-pruner"


def test_module_spec(tmp_path, monkeypatch):
    package = tmp_path / "audit_sample_package"
    package.mkdir()
    write(package / "__init__.py", "")
    inner = write(package / "pruners.py", METHOD.format(name="MyPruner"))
    monkeypatch.syspath_prepend(tmp_path)
    source = Catalog(extra_methods=("audit_sample_package.pruners:MyPruner",)).method("my-pruner")
    assert source.cls.__name__ == "MyPruner"
    assert source.create().name == "my-pruner"
    assert source.digest == code_digest(inner.read_bytes())
    write(inner, METHOD.format(name="MyPruner") + "LIMIT = 1\n")
    anew = Catalog(extra_methods=("audit_sample_package.pruners:MyPruner",)).method("my-pruner")
    assert anew.digest != source.digest


def test_entry_point(tmp_path, monkeypatch):
    write(tmp_path / "audit_sample_plugin.py", METHOD.format(name="Mine"))
    monkeypatch.syspath_prepend(tmp_path)
    entry = importlib.metadata.EntryPoint("installed", "audit_sample_plugin:Mine", catalog_module.ENTRY_POINT_GROUP)

    def fake(group):
        assert group == "pruneaudit.methods"
        return [entry]

    monkeypatch.setattr(catalog_module, "entry_points", fake)
    catalog = Catalog()
    assert catalog.method("installed").create().name == "installed"
    assert "installed" not in catalog.select_methods("core")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("absent_file.py", "no such file"),
        ("just-a-name", "expected 'file.py' or 'package.module:Class'"),
        ("module:", "expected 'file.py' or 'package.module:Class'"),
        (":Class", "expected 'file.py' or 'package.module:Class'"),
    ],
)
def test_bad_spec(spec, expected):
    with pytest.raises(ConfigError) as caught:
        _ = Catalog(extra_methods=(spec,)).methods
    assert spec in str(caught.value) and expected in str(caught.value)


def test_collision_names_both(tmp_path):
    path = write(tmp_path / "l1.py", METHOD.format(name="Mine"))
    with pytest.raises(ConfigError) as caught:
        _ = Catalog(extra_methods=(str(path),)).methods
    message = str(caught.value)
    assert "two methods are called 'l1'" in message and "rename" in message
    assert str(path) in message and str(content_root() / "methods" / "l1.py") in message


@pytest.mark.parametrize("stem", ["my pruner", "größe", "-dash", "a+b"])
def test_id_that_cannot_be_selected(tmp_path, stem):
    path = write(tmp_path / f"{stem}.py", METHOD.format(name="Mine"))
    with pytest.raises(ConfigError, match="use lower-case letters, digits"):
        _ = Catalog(extra_methods=(str(path),)).methods


@pytest.mark.parametrize(
    ("stem", "said"),
    [("all", "all methods"), ("scratch-of-l1", "what 'l1' found"), ("scratch-e-of-mine", "what 'mine' found")],
)
def test_a_name_that_says_something_else_is_refused(tmp_path, stem, said):
    """Whoever asked for it would get the other thing."""
    path = write(tmp_path / f"{stem}.py", METHOD.format(name="Mine"))
    with pytest.raises(ConfigError, match=f"^method name '{stem}': it says .*{said}; choose another$"):
        _ = Catalog(extra_methods=(str(path),)).methods


def test_a_name_with_of_in_it_is_a_name(tmp_path):
    path = write(tmp_path / "sum-of-norms.py", METHOD.format(name="Mine"))
    catalog = Catalog(extra_methods=(str(path),))
    assert catalog.method("sum-of-norms").path == path and finder("sum-of-norms") is None
    assert catalog.method("scratch-of-sum-of-norms").found_by == "sum-of-norms"


# Files that hold no method


def refusal(path):
    with pytest.raises(MethodError) as caught:
        MethodSource(method_id(path.stem), path=path).create()
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message or path.stem in message
    return message


def test_no_class_in_a_file(tmp_path):
    path = write(tmp_path / "nothing.py", "from pruneaudit import FilterScore\nclass Other: pass\n")
    assert "expected exactly one Method subclass, found none" in refusal(path)


def test_two_classes_in_a_file(tmp_path):
    path = write(tmp_path / "both.py", METHOD.format(name="First") + METHOD.format(name="Second"))
    message = refusal(path)
    assert "expected exactly one Method subclass, found First, Second" in message


def test_file_that_raises(tmp_path):
    path = write(tmp_path / "raises.py", "import nosuchmodule_for_pruneaudit\n")
    assert "nosuchmodule_for_pruneaudit" in refusal(path)
    write(path, METHOD.format(name="Mine"))
    assert MethodSource("raises", path=path).create().name == "raises", "a failed import must leave nothing behind"


def test_syntax_error_is_one_line(tmp_path):
    path = write(tmp_path / "unfinished.py", "class Mine(\n")
    assert "SyntaxError" in refusal(path)


def test_abstract_class(tmp_path):
    path = write(tmp_path / "abstract.py", "from pruneaudit import FilterScore\nclass Mine(FilterScore): pass\n")
    assert "cannot be created" in refusal(path)


def test_constructor_that_needs_arguments(tmp_path):
    path = write(tmp_path / "demanding.py", METHOD.format(name="Mine") + "    def __init__(self, strength): pass\n")
    assert "cannot be created" in refusal(path) and "strength" in refusal(path)


def test_target_that_is_no_method():
    with pytest.raises(MethodError, match="is no Method; derive it from"):
        _ = MethodSource("counter", target="collections:Counter").cls
    with pytest.raises(MethodError, match="cannot be imported from collections:Nothing"):
        _ = MethodSource("nothing", target="collections:Nothing").cls


# Digests


def test_digest_follows_the_source(tmp_path):
    path = write(tmp_path / "my_pruner.py", METHOD.format(name="Mine"))
    before = Catalog(extra_methods=(str(path),)).method("my-pruner").digest
    assert before == code_digest(path.read_bytes())
    assert Catalog(extra_methods=(str(path),)).method("my-pruner").digest == before
    write(path, METHOD.format(name="Mine") + "# a comment\n")
    assert Catalog(extra_methods=(str(path),)).method("my-pruner").digest == before
    write(path, METHOD.format(name="Mine") + "EDITED = True\n")
    assert Catalog(extra_methods=(str(path),)).method("my-pruner").digest != before


def test_new_digest_means_new_code(tmp_path):
    # Same length and second: a cache that looks at size and time of the file would not see the edit.
    path = write(tmp_path / "my_pruner.py", METHOD.format(name="Early"))
    first = MethodSource("my-pruner", path=path)
    assert first.cls.__name__ == "Early" and first.digest
    write(path, METHOD.format(name="After"))
    second = MethodSource("my-pruner", path=path)
    assert second.digest != first.digest
    assert second.cls.__name__ == "After", (
        "an edited method must not be recorded under its new digest and run as before"
    )


# Scratch arms of found architectures


def test_a_scratch_arm_of_a_found_architecture_is_that_arm():
    source = Catalog().method("scratch-b-of-l1-global")
    assert (source.name, source.found_by, source.path.stem) == ("scratch-b-of-l1-global", "l1-global", "scratch_b")
    assert source.cls.__name__ == "ScratchB"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scratch-of-l1-globall", "unknown method 'l1-globall'. Did you mean 'l1-global'?"),
        ("scratch-of-", "unknown method ''"),
        ("l1-of-tpp", "unknown method 'l1-of-tpp'"),
    ],
)
def test_only_scratch_arms_train_what_others_found(name, message):
    with pytest.raises(ConfigError) as caught:
        Catalog().method(name)
    assert str(caught.value).startswith(message)


def test_a_method_is_compared_with_the_scratch_arm_of_its_own_architecture():
    protocol = Catalog().protocol("sx-b")
    methods = ("l1", "l1-global", "scratch", "scratch-b", "scratch-of-l1-global")
    assert pairs(protocol, methods) == [("l1", "scratch"), ("l1-global", "scratch-of-l1-global")]
    assert pairs(protocol, ("l1", "l1-global", "scratch-of-l1-global")) == [("l1-global", "scratch-of-l1-global")]


def test_of_many_methods_each_is_compared_with_the_controls():
    protocol = Catalog().protocol("s3.2")
    few = ("l1", "random", *(f"mine-{number}" for number in range(10)))
    assert len(pairs(protocol, few)) == 66
    many = (*few, "one-more")
    found = pairs(protocol, many)
    assert len(found) == 1 + 2 * 11 and all({"l1", "random"} & set(pair) for pair in found)
    # Nothing is left unjudged where nobody brought a control.
    assert len(pairs(protocol, tuple(f"mine-{number}" for number in range(13)))) == 78


# Variants


TWO = """
from pruneaudit import FilterScore
from beside import spread


class First(FilterScore):
    "One of two."

    def __init__(self, strength=1.0, mode="slow"):
        self.strength, self.mode = strength, mode

    def score(self, layer, task):
        return spread(layer.weight) * self.strength


class Second(First):
    "The other."
"""


@pytest.fixture
def two(tmp_path):
    """A file with two methods that imports the file beside it."""
    write(tmp_path / "beside.py", "def spread(weight):\n    return weight.flatten(1).std(dim=1)\n")
    yield write(tmp_path / "two.py", TWO)
    sys.modules.pop("beside", None)


def test_a_class_of_a_file_and_its_hyper_parameters_are_named(two):
    specs = (f"{two}:First", f"{two}:First(strength=0.3)", f"{two}:First(strength=-0.3, mode='fast')", f"{two}:Second")
    catalog = Catalog(extra_methods=specs)
    names = ("first", "first-strength-0.3", "first-strength-minus-0.3-mode-fast", "second")
    assert catalog.extra_names == names
    created = {name: catalog.method(name).create() for name in names}
    assert [(method.strength, method.mode) for method in created.values()] == [
        (1.0, "slow"), (0.3, "slow"), (-0.3, "fast"), (1.0, "slow"),
    ]  # fmt: skip
    assert [type(method).__name__ for method in created.values()] == ["First", "First", "First", "Second"]
    again = catalog.method("first-strength-0.3").anew()
    assert again.create().strength == 0.3 and again.cls is not catalog.method("first-strength-0.3").cls
    with pytest.raises(MethodError, match=r"expected exactly one Method subclass, found First, Second; name one"):
        catalog_module.method_source(str(two)).create()
    with pytest.raises(MethodError, match="Did you mean 'First'"):
        catalog_module.method_source(f"{two}:Fist").create()
    with pytest.raises(MethodError, match=r"cannot be created: TypeError: .*strenght"):
        catalog_module.method_source(f"{two}:First(strenght=1)").create()


@pytest.mark.parametrize("call", ["(0.3)", "(strength=open('x'))", "(**{})", "(strength=)", "(a=1)(b=2)"])
def test_hyper_parameters_are_literals_and_never_run(two, call):
    with pytest.raises(ConfigError, match="hyper-parameters are names and literal values"):
        catalog_module.method_source(f"{two}:First{call}")


def test_ratios_are_added_to_those_of_a_workload():
    catalog = Catalog()
    chosen = Selection(catalog, ("l1", "random"), ("s3.2",), seeds=1, workloads=("lenet5-digits",), ratios=(0.6, 0.9))
    assert chosen.ratios_of(catalog.workload("lenet5-digits")) == (0.5, 0.9, 0.6)
    assert {cell.ratio for cell in chosen.cells()} == {0.5, 0.6, 0.9}
    assert {one.ratio for one in chosen.comparisons()} == {arm.ratio for arm in chosen.arms()} == {0.5, 0.6, 0.9}
    assert len(chosen.cells()) == len(set(chosen.cells())) == 6
