"""What a workload of one's own starts from, and what ``check_workload`` finds wrong with one."""

import json
from pathlib import Path

import pytest
import torch
from test_own_workloads import NETWORK, WORKLOAD

from pruneaudit import check_workload, cli
from pruneaudit.campaign.conformance import WORKLOAD_CHECKS
from pruneaudit.campaign.scaffold import new_workload
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import ConfigError
from pruneaudit.sources import load_file

DATA = """
import numpy as np
from pruneaudit import Data


def dots(count=90, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(256, size=(count, 8, 8, 1), dtype=np.uint8), np.arange(count) % 3


def good():
    return Data(train=dots(), test=dots(30, seed=1))


def overlapping():
    return Data(train=dots(), test=dots(30))


def moody():
    import os
    return Data(train=dots(seed=int.from_bytes(os.urandom(4), "big")), test=dots(30, seed=1))


def gap():
    images, labels = dots()
    return Data(train=(images, np.where(labels == 1, 3, labels)), test=dots(30, seed=1))
"""
FORWARD = "\n    def forward(self, images):\n        "
#: Planted faults by name: the check that finds them, what it says, and what is put into the network's class.
FAULTS = {
    "one and the same": (
        "network",
        "returns one network again and again",
        "\n\n_ONE = []\n\n\ndef build(channels, classes):\n"
        "    _ONE.append(Tiny(channels, classes))\n    return _ONE[0]\n",
    ),
    "born differently": (
        "network",
        "'shift' differs when the network is built again with the same seed",
        "        import os\n"
        "        self.shift = nn.Parameter(torch.full((1,), float(int.from_bytes(os.urandom(4), 'big'))))\n",
    ),
    "looks at its batch": (
        "network",
        "depend on the others of its batch",
        f"{FORWARD}logits = super().forward(images)\n        return logits - logits.mean(0) * (len(images) > 1)\n",
    ),
    "wrong classes": (
        "network",
        r"returns [2, 5] for two inputs in training, expected logits [2, 3]",
        f"{FORWARD}return super().forward(images).repeat(1, 2)[:, :5]\n",
    ),
    "counts on positions": (
        "units",
        "layer '0' cannot lose filters: its channels reach more than the layers that would lose inputs",
        f"{FORWARD}maps = self[0](images)\n        maps = maps - maps.mean(1, keepdim=True)\n"
        "        for layer in list(self)[1:]:\n            maps = layer(maps)\n        return maps\n",
    ),
    "learns nothing": (
        "trains",
        "two steps of pretrain change no weight",
        f"{FORWARD}logits = super().forward(images)\n"
        "        return logits.detach().requires_grad_() if self.training else logits\n",
    ),
    "doubles its batch": (
        "trains",
        "the meter reads",
        f"{FORWARD}return super().forward(torch.cat([images, images]))[: len(images)]\n",
    ),
    "noise of its own": (
        "deterministic",
        "differs after the same two steps",
        "        self.draw = _DRAW\n"
        f"{FORWARD}noise = torch.randn(1, generator=self.draw).item() if self.training else 0.0\n"
        "        return super().forward(images + 0.1 * noise)\n\n\n_DRAW = torch.Generator()\n",
    ),
    "keeps state beside": (
        "can-be-stored",
        "register what it keeps as buffers",
        "        self.seen = 0.0\n"
        f"{FORWARD}self.seen += float(self.training)\n        return super().forward(images) + self.seen\n",
    ),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets.py").write_text(NETWORK)
    (tmp_path / "data.py").write_text(DATA)
    write(tmp_path)
    return tmp_path


def write(folder, data="good", model="Tiny", **other):
    text = WORKLOAD.replace('name = "digits"\nmean = [0.3]\nstd = [0.4]', f'name = "data.py:{data}"')
    text = text.replace("nets.py:Tiny", f"nets.py:{model}")
    for before, after in other.values():
        text = text.replace(before, after)
    (folder / "tiny.toml").write_text(text)


def refusal(folder):
    with pytest.raises(ConfigError) as caught:
        check_workload(folder / "tiny.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_workload_that_can_be_audited(folder):
    threads = torch.get_num_threads()
    check_workload(folder / "tiny.toml")
    found = check_workload(str(folder))
    assert [unit.name for unit in found["tiny"].units] and not found["tiny"].refused
    check_workload(Catalog(extra_workloads=(str(folder),)).workload("tiny"))
    assert torch.get_num_threads() == threads


def test_it_tells_what_can_be_removed_and_what_cannot(folder):
    (folder / "nets.py").write_text(
        NETWORK.replace("nn.Conv2d(width, 8, 3), nn.ReLU()", "nn.Conv2d(width, 8, 3), nn.LayerNorm([8, 4, 4])")
    )
    write(folder, auto=('prunable = ["0"]', 'prunable = "auto"'))
    found = check_workload(folder / "tiny.toml")["tiny"]
    assert [unit.name for unit in found.units] == ["0"]
    assert found.refused.keys() == {"3", "6"}, found.refused
    assert "classif" in found.refused["6"] and "LayerNorm" in found.refused["3"], found.refused


def test_a_workload_of_the_catalogue():
    check_workload("resnet20-digits")
    with pytest.raises(ConfigError, match="Did you mean 'resnet20-digits'"):
        check_workload("resnet20-digit")


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(folder, fault):
    check, said, code = FAULTS[fault]
    (folder / "nets.py").write_text(f"import torch\n{NETWORK.rstrip()}\n{code}")
    write(folder, model="build" if "def build" in code else "Tiny")
    message = refusal(folder)
    assert message.startswith(f"tiny: {check}: ") and said in message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("overlapping", "test"),
        ("moody", "differ when the data is read again"),
        ("gap", "label"),
        ("absent", "absent"),
    ],
)
def test_faults_of_data_are_found(folder, data, said):
    write(folder, data=data)
    message = refusal(folder)
    assert message.startswith("tiny: data: ") and said in message


def test_the_page_lists_every_check():
    page = (Path(__file__).parents[1] / "docs" / "workload-author.md").read_text(encoding="utf-8")
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and "| " in line][-7:] == list(
        WORKLOAD_CHECKS
    )


# The first files


def command(capsys, *arguments):
    cli.app([*map(str, arguments)], standalone_mode=False)
    return capsys.readouterr().out


def test_what_new_workload_writes_can_be_audited(tmp_path, capsys):
    told = command(capsys, "new-workload", "MyArena", "--to", tmp_path / "new")
    names = ["my-arena.toml", "my_arena_network.py", "my_arena_data.py", "test_my_arena.py"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    assert all(f"wrote {tmp_path / 'new' / name}" in told for name in names)
    assert '-k "my-arena and s3.2"' in told
    load_file(tmp_path / "new" / "test_my_arena.py").test_my_arena_can_be_audited()
    listed = json.loads(command(capsys, "workloads", "--audit-workload", tmp_path / "new", "--json"))
    assert listed[-1]["name"] == "my-arena" and listed[-1]["model_args"] == [["width", 16]]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lenet5-digits", "there is a workload 'lenet5-digits' already"),
        ("my arena", "use letters, digits"),
        ("1st", "use letters, digits"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_name_that_cannot_be_used_is_one_line(tmp_path, name, said):
    with pytest.raises(ConfigError) as caught:
        new_workload(name, tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_kept_and_nothing_is_written(tmp_path):
    (tmp_path / "arena_data.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"arena_data\.py is there already"):
        new_workload("arena", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["arena_data.py"]
