"""Base models as people have them: what is read, what is told, and what is refused in one line."""

import argparse
import hashlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from pruneaudit.campaign.planner import check_base
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.records import RunSpec
from pruneaudit.workloads.checkpoints import base_path, fitted, read
from pruneaudit.workloads.models import build
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.schema import Base, Reading, load_workload

PLAIN = Reading()
WORKLOAD = Catalog().workload("resnet20-digits")


@pytest.fixture(scope="module")
def net():
    network = build("resnet20", 1, 10)
    initialise(network, torch.Generator().manual_seed(7))
    return network


@pytest.fixture(scope="module")
def state(net):
    return net.state_dict()


def saved(content, **options):
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def load(tmp_path, content, network, reading=PLAIN, name="base.pth", what="resnet20"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else saved(content))
    return fitted(read(path), path, reading, network, what)


def refusal(*arguments, **options):
    with pytest.raises(ConfigError) as caught:
        load(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text and "base.pth" in text and len(text) < 330, text
    return text


def changed(state, name, **values):
    """A state in which entry 0 of one tensor has another value."""
    tensors = {key: tensor.clone() for key, tensor in state.items()}
    tensors[name].view(-1)[0] = values["to"]
    return tensors


def wrapped(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def without_counters(state):
    return {name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name}


READ = {
    "plain": (lambda state: state, ()),
    "before-1.6": (lambda state: saved(state, _use_new_zipfile_serialization=False), ()),
    "safetensors": (lambda state: save(dict(state)), ()),
    "state_dict": (lambda state: {"state_dict": state, "epoch": 3}, ("read from 'state_dict'",)),
    "model_state_dict": (lambda state: {"model_state_dict": state}, ("read from 'model_state_dict'",)),
    "net": (lambda state: {"net": state, "acc": 93.1}, ("read from 'net'",)),
    "ema-alone": (lambda state: {"ema": state}, ("read from 'ema'",)),
    "model-and-ema": (lambda state: {"model": state, "ema": state}, ("read from 'model'", "'ema' not read")),
    "torchvision": (
        lambda state: {"model": state, "args": argparse.Namespace(lr=0.1), "best": np.float64(93.1)},
        ("read from 'model'",),
    ),
    "parallel": (wrapped("module."), ("prefix 'module.' taken off",)),
    "compiled": (wrapped("_orig_mod."), ("prefix '_orig_mod.' taken off",)),
    "compiled-parallel": (wrapped("module._orig_mod."), ("prefix 'module._orig_mod.' taken off",)),
    "lightning": (
        lambda state: {"state_dict": wrapped("model.")(state), "callbacks": {}},
        ("read from 'state_dict'", "prefix 'model.' taken off"),
    ),
    "backbone": (wrapped("backbone."), ("prefix 'backbone.' taken off",)),
    "counters": (without_counters, ("19 num_batches_tracked missing, set to 0",)),
}


@pytest.mark.parametrize("kind", READ)
def test_common_layouts_are_read_and_told(kind, state, net, tmp_path):
    make, notes = READ[kind]
    weights = load(tmp_path, make(state), net)
    assert weights.notes == notes
    assert list(weights.tensors) == list(state)
    for name, tensor in state.items():
        torch.testing.assert_close(weights.tensors[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_cast_and_told(kind, state, net, tmp_path):
    content = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    weights = load(tmp_path, content, net)
    assert weights.notes == (f"{str(kind).removeprefix('torch.')} cast to float32",)
    fresh = build("resnet20", 1, 10)
    fresh.load_state_dict(weights.tensors)
    expected = state["conv1.weight"].to(kind).float()
    torch.testing.assert_close(fresh.conv1.weight.data, expected, rtol=0, atol=0)


def test_torchvisions_second_weights_are_told_from_those_that_papers_prune(state, net, tmp_path, monkeypatch):
    from pruneaudit.workloads import checkpoints

    known = checkpoints._released()
    assert known["0676ba61"] == "torchvision's ResNet50_Weights.IMAGENET1K_V1"
    assert known["11ad3fa6"].endswith("ResNet50_Weights.IMAGENET1K_V2, and not the IMAGENET1K_V1 that papers prune")
    assert known["b627a593"] == "torchvision's ResNet34_Weights.IMAGENET1K_V1"
    content = save(state)
    assert checkpoints.released_as(content) == []
    digest = hashlib.sha256(content).hexdigest()[:8]
    monkeypatch.setattr(checkpoints, "_released", lambda: {digest: known["11ad3fa6"]})
    assert known["11ad3fa6"] in fitted(content, tmp_path / "base.safetensors", Reading(), net, "net").notes


def test_zeros_are_told(state, net, tmp_path):
    content = {name: tensor * (tensor > 0) if tensor.dim() > 1 else tensor for name, tensor in state.items()}
    (note,) = load(tmp_path, content, net).notes
    share, _, rest = note.partition("%")
    assert abs(float(share) - 50) < 0.5 and rest.endswith("may grow: zeros = 'hold' in [base] keeps them")
    (note,) = load(tmp_path, content, net, Reading(zeros="hold")).notes
    assert note.endswith("of its weights are zero, and stay so")


@settings(max_examples=25, deadline=None)
@given(
    prefixes=st.lists(st.sampled_from(["module.", "_orig_mod.", "model.", "backbone."]), max_size=3),
    keys=st.lists(st.sampled_from(["state_dict", "model", "net", "model_state_dict", "ema"]), max_size=2),
)
def test_any_nesting_and_any_wrappers_give_the_same_weights(prefixes, keys, tmp_path_factory):
    network = nn.Sequential()
    network.add_module("model", nn.Linear(2, 2))  # whose own name looks like a prefix
    network.add_module("fc", nn.Linear(2, 2))
    expected = network.state_dict()
    content = wrapped("".join(prefixes))(expected)
    for key in keys:
        content = {key: content}
    found = load(tmp_path_factory.mktemp("base"), content, network).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


class Runs:
    """Reading it as a pickle runs code."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (self.mark, "w"))


def test_no_code_runs_when_a_checkpoint_is_read(state, net, tmp_path):
    text = refusal(tmp_path, {"state_dict": state, "extra": Runs(str(tmp_path / "ran"))}, net)
    assert not (tmp_path / "ran").exists()
    assert "holds more than weights" in text and "torch.save(model.state_dict(), FILE)" in text


def of_classes(count):
    return build("resnet20", 1, count).state_dict()


REFUSED = {
    "whole-model": (lambda state: build("resnet20", 1, 10), "resnet.CifarResNet (torch.save(model) leaves such)"),
    "int8": (
        lambda state: {name: (tensor * 100).to(torch.int8) for name, tensor in state.items()},
        "tensor 'conv1.weight' is stored as int8",
    ),
    "quantised": (
        lambda state: state | {"conv1.weight": torch.quantize_per_tensor(state["conv1.weight"], 0.1, 0, torch.qint8)},
        "tensor 'conv1.weight' is stored as qint8",
    ),
    "int8-safetensors": (
        lambda state: save(dict(state) | {"conv1.weight": state["conv1.weight"].to(torch.int8)}),
        "tensor 'conv1.weight' is stored as I8",
    ),
    "float8-safetensors": (
        lambda state: save(dict(state) | {"conv1.weight": state["conv1.weight"].to(torch.float8_e4m3fn)}),
        "tensor 'conv1.weight' is stored as F8_E4M3",
    ),
    "classes": (
        lambda state: of_classes(7),
        "tensor 'linear.weight' has shape [7, 64], resnet20 needs [10, 64]: it tells 7 classes apart, the data has 10",
    ),
    "width": (
        lambda state: state | {"layer1.0.conv1.weight": torch.zeros(8, 16, 3, 3)},
        "tensor 'layer1.0.conv1.weight' has shape [8, 16, 3, 3], resnet20 needs [16, 16, 3, 3]: it is of another width",
    ),
    "architecture": (
        lambda state: build("lenet5", 1, 10).state_dict(),
        "no tensor 'bn1.weight', which resnet20 needs, but 'conv1.bias'; give a checkpoint of resnet20",
    ),
    "deeper": (lambda state: build("resnet32", 1, 10).state_dict(), "tensor 'layer1.3.conv1.weight' is none of"),
    "profiled": (
        lambda state: state | {"total_ops": torch.zeros(1)},
        "leave it out: [base.rename] maps '^total_ops$' to ''",
    ),
    "nan": (
        lambda state: changed(state, "layer2.1.conv2.weight", to=float("nan")),
        "tensor 'layer2.1.conv2.weight' holds 1 value that are no finite numbers",
    ),
    "variance": (
        lambda state: changed(state, "layer1.0.bn1.running_var", to=-1.0),
        "tensor 'layer1.0.bn1.running_var' holds a negative variance (-1)",
    ),
    "cut-off": (lambda state: saved(state)[:-3000], "no PyTorch checkpoint or damaged"),
    "cut-off-safetensors": (lambda state: save(dict(state))[:-4], "not a safetensors file or damaged"),
    "page": (lambda state: b"<!DOCTYPE html><title>Sign in</title>", "not a safetensors file or damaged"),
    "empty": (lambda state: b"", "not a safetensors file or damaged"),
    "pointer": (lambda state: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "list": (lambda state: [state["conv1.weight"]], "no tensors by name"),
    "elsewhere": (lambda state: {"teacher": state, "epoch": 3}, "Keys: teacher, epoch. Say where they are with 'key'"),
    "packed": (lambda state: state | {"linear._packed_params": (1, 2)}, "'linear._packed_params' is a tuple and no"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_base_is_refused_by_its_first_difference(kind, state, net, tmp_path):
    make, message = REFUSED[kind]
    assert message in refusal(tmp_path, make(state), net)


def test_patterns_rename_before_prefixes_go(state, net, tmp_path):
    content = {f"module.encoder_q.{name.replace('linear', 'fc')}": tensor for name, tensor in state.items()}
    content["module.total_ops"] = torch.zeros(1)
    reading = Reading(rename=((r"encoder_q\.", ""), (r"\.fc\.", ".linear."), (r"^.*total_ops$", "")))
    weights = load(tmp_path, content, net, reading)
    assert weights.notes == ("prefix 'module.' taken off",)
    assert torch.equal(weights.tensors["linear.weight"], state["linear.weight"])
    clash = Reading(rename=((r"conv\d", "conv"),))
    assert "one name, 'layer1.0.conv.weight'" in refusal(tmp_path, state, net, clash)


def test_a_key_is_followed_and_a_wrong_one_corrected(state, net, tmp_path):
    content = {"teacher": {"weights": state}, "epoch": 3}
    assert load(tmp_path, content, net, Reading(key="teacher.weights")).notes == ("read from 'teacher.weights'",)
    assert "Did you mean 'teacher'?" in refusal(tmp_path, content, net, Reading(key="teachr"))


def workload_file(tmp_path, head):
    text = (Catalog().root / "protocols" / "workloads" / "resnet20-digits.toml").read_text()
    path = tmp_path / "mine.toml"
    tables = text.index("[data]")
    path.write_text(head[0] + text[:tables] + head[1] + text[tables:])
    return path


def test_a_workload_names_its_base_by_a_string_or_a_table(tmp_path):
    plain = load_workload(workload_file(tmp_path, ('base = "mine.pth"\n', "")))
    assert plain.base == Base(path="mine.pth") and plain.reading == Reading()
    table = '[base]\npath = "mine.pth"\nkey = "ema"\n[base.rename]\n"^encoder\\\\." = ""\n"fc" = "linear"\n'
    named = load_workload(workload_file(tmp_path, ("", table)))
    assert named.reading == Reading(key="ema", rename=(("^encoder\\.", ""), ("fc", "linear")))
    here = named.model_copy(update={"folder": tmp_path})
    assert base_path(None, here) == tmp_path / "mine.pth"
    assert base_path(None, named.model_copy(update={"folder": None})).name == "mine.pth"
    assert base_path(tmp_path / "other.pth", here) == tmp_path / "other.pth"
    with pytest.raises(ConfigError, match=r"mine.toml: base.rename: '\(' = '': no regular expression"):
        load_workload(workload_file(tmp_path, ("", '[base.rename]\n"(" = ""\n')))
    with pytest.raises(ConfigError, match=r"base\.pth: unknown key. Did you mean 'path'"):
        load_workload(workload_file(tmp_path, ("", '[base]\npth = "x"\n')))


def test_how_a_file_is_read_is_part_of_a_run(state, tmp_path):
    spec = RunSpec(
        workload="x", workload_version=1, stage="pretrain", model="resnet20", data=WORKLOAD.data,
        recipe=WORKLOAD.pretrain, seed=0, checkpoint="0" * 64, numerics=1,
    )  # fmt: skip
    assert spec.model_copy(update={"reading": Reading()}).run_id == spec.run_id
    other = spec.model_copy(update={"reading": Reading(key="ema")})
    assert other.run_id != spec.run_id
    path = tmp_path / "base.pth"
    path.write_bytes(saved({"model": state, "ema": state}))
    chosen = Settings(base=path)
    labels = {chosen.labels(WORKLOAD.model_copy(update={"base": base})) for base in (None, Base(), Base(key="ema"))}
    assert len(labels) == 2, "the same file read otherwise has another label, read the same way the same one"


def test_a_base_is_checked_before_anything_trains(state, tmp_path):
    path = tmp_path / "base.pth"
    path.write_bytes(saved(state))
    assert check_base(Settings(base=path), WORKLOAD) == Settings(base=path).base_digest(WORKLOAD)
    assert check_base(Settings(), WORKLOAD) is None
    bad = tmp_path / "bad.pth"
    bad.write_bytes(saved(of_classes(7)))
    for _ in range(2):
        with pytest.raises(ConfigError, match="it tells 7 classes apart"):
            check_base(Settings(base=bad), WORKLOAD)
