"""The versions that references are made with can be had again: constraints.txt names all, and references agree."""

import json
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
REFERENCES = sorted((ROOT / "reports" / "reference").glob("*/results.json"))
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINNED = dict(line.split("==") for line in LINES)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["compiled"]]]


@pytest.mark.parametrize("need", NEEDED, ids=lambda need: need.name)
def test_every_dependency_is_pinned_to_a_version_that_is_allowed(need):
    assert need.specifier.contains(PINNED[canonicalize_name(need.name)])


def test_what_dependencies_need_is_pinned_too_where_it_is_installed():
    """Of torch's own needs those of CUDA are left to torch, which names their versions."""
    open_, seen = [need.name for need in NEEDED], set()
    while open_:
        name = canonicalize_name(open_.pop())
        if name in seen or name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        seen.add(name)
        needs = [Requirement(text) for text in metadata.requires(name) or []]
        open_ += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    assert sorted(seen - set(PINNED)) == []


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.parent.name)
def test_references_in_portable_arithmetic_were_made_with_these_versions(path):
    for environment in json.loads(path.read_text())["environments"]:
        if environment.get("arithmetic", "").startswith("portable"):
            assert environment["torch"].partition("+")[0] == PINNED["torch"]
            assert f"NumPy {PINNED['numpy']}," in environment["arithmetic"]
