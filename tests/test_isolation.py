"""Foreign methods in processes of their own: what they cannot do, what is seen of it, and that nothing else changes.

``tests/rogues/isolated/`` holds the methods, one file each.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import math
import os
import re
import resource
import select
import shutil
import socket
import stat
import subprocess
import sys
import termios
import threading
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from court import CONVNET, LENET, Court, arm

from pruneaudit import sandbox
from pruneaudit.catalog.discovery import Catalog, content_root, method_source, shipped
from pruneaudit.catalog.names import method_id
from pruneaudit.errors import MethodError
from pruneaudit.method import child, isolation, words
from pruneaudit.method.channel import HungUpError, Line, SilentError
from pruneaudit.method.isolation import check, described
from pruneaudit.method.limits import Limits, free_memory
from pruneaudit.method.outside import describing
from pruneaudit.method.process import Origin, Process
from pruneaudit.pruning import shapes
from pruneaudit.sources import code_digest
from pruneaudit.training.loop import History
from pruneaudit.training.runtime import Runtime

torch.set_num_threads(1)

ROGUES = Path(__file__).parent / "rogues" / "isolated"
ALL_WEIGHTS = "conv1.bias, conv1.weight, conv2.bias and 3 more"
OTHER_WEIGHTS = "fc1.bias, fc1.weight, fc2.bias and 1 more"
OWN_CODE = "prune: it computes as much as the training of"
confined = pytest.mark.skipif(not sandbox.version(), reason="this kernel has no Landlock")

#: Rules that must fail, and what they say that was measured.
CAUGHT = {
    "hands_over_others": {
        "F501": OWN_CODE,
        "F502": ALL_WEIGHTS,
        "F507": OTHER_WEIGHTS,
    },
    "rewrites_by_training": {
        "F501": OWN_CODE,
        "F502": "of an untrained network it makes",
    },
    "one_step_licence": {"F502": "of an untrained network it makes"},
    "hides_in_its_budget": {"F502": "of an untrained network it makes"},
    "brings_weights": {"F502": "of an untrained network it makes"},
    "brings_to_trained": {"F502": "where classes have other numbers it makes"},
}
#: Those that come to no end: the cell fails, and says why.
REFUSED = {
    "moves_the_target": "misses its target in layer 'conv1': keeps 5 of 6 filters; ratio 0.5 asks for 3",
    "skips_by_pytest": "raised Skipped: not today",
    "leaves_quietly": "its process ended before it answered",
    "hangs": "its process said nothing for 3 seconds",
    "asks_for_ever": "asks for more than 107900 images to score with",
    "trains_for_ever": "asks for more than 12948 images to train with",
    "talks_for_ever": "says more than 20000 things",
    "dawdles": "was waited for 0.000556 hours in all, as long as a stage may take; give --audit-stage-limit",
}
#: Who lets wait is waited for less than usual. A busy machine may need seconds for an import; the others say something.
SHORT = {"hangs": {"patience": 3.0}, "dawdles": {"most": 2.0}}
#: Those that a kernel with Landlock stops.
OUT_OF_REACH = {
    "reads_at_import": "opens data: ",
    "forges_state": "Permission denied: '.pruneaudit/ledger/work'",
    "reads_the_key": "opens keys: ",
}
#: Those that come to nothing: what is measured is what L1 would have been.
HARMLESS = ("patches_torch", "honest_habits")
FAIR = ("reads_its_history",)


class IsolatedCourt(Court):
    """A campaign whose foreign methods run in processes of their own."""

    def __init__(self, root, *files, isolate="foreign", patience=60.0, most=Runtime.most):
        super().__init__(root, *files)
        self.catalog.isolate, self.catalog.outside = isolate, described
        self.campaign.executor.stages.runtime = Runtime(patience=patience, most=most)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where one session runs after the other, at one ledger: bases, L1, and the methods."""
    root = tmp_path_factory.mktemp("isolated")
    for file in ROGUES.glob("*.py"):
        shutil.copy(file, root)
    court = Court(root / ".pruneaudit" / "ledger")
    court.measure(arm("l1"))
    # What "brings_weights" brings, whatever the network or to a trained one: those of the trained base.
    base = court.evidence(arm("l1")).base
    torch.save(court.ledger.weights(base), root / "brings_weights.pt")
    shutil.copy(root / "brings_weights.pt", root / "brings_to_trained.pt")
    return root


@pytest.fixture
def court(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda name, **more: IsolatedCourt(folder / ".pruneaudit" / "ledger", folder / f"{name}.py", **more)


def failed(findings):
    return {
        rule: str(next(iter(found.measured.values()))) for rule, found in findings.items() if found.verdict != "pass"
    }


def test_every_rogue_is_here():
    apart = {"__init__", "trained_by_hand", "recalibrates", "leaves_notes", "looks_around", "takes_too_much"}
    apart |= {"forges_words", "speaks_for_others"}
    files = {path.stem for path in ROGUES.glob("*.py")} - apart
    assert files == {"swaps_later", *CAUGHT, *REFUSED, *OUT_OF_REACH, *HARMLESS, *FAIR}


@pytest.mark.parametrize("name", CAUGHT)
def test_better_weights_are_seen_whatever_brings_them(court, name):
    judged = court(name)
    found = failed(judged.findings(arm(name)))
    assert found.keys() == CAUGHT[name].keys()
    assert all(found[rule].startswith(text) for rule, text in CAUGHT[name].items())
    conduct = judged.evidence(arm(name)).prune.conduct
    assert conduct.isolation.startswith("process")
    if "untrained" in CAUGHT[name]["F502"]:
        assert conduct.untrained.accuracy > 60 > conduct.untrained.at_most
    elif conduct.untrained is not None and conduct.declares_rewriting:
        # It leaves an untrained network alone. That nothing fits any more, is worse than chance.
        assert conduct.untrained.accuracy <= conduct.untrained.at_most
        assert conduct.renumbered.accuracy < 10 and conduct.renumbered.at_least > 50


def test_weights_are_as_they_are_when_they_cross(court):
    """Whether a thread comes in time is chance; nothing that it does later counts."""
    judged = court("swaps_later")
    found = failed(judged.findings(arm("swaps_later")))
    one, plain = judged.evidence(arm("swaps_later")).prune, judged.evidence(arm("l1")).prune
    assert found.keys() & {"F502", "F509"} or one.weights_digest == plain.weights_digest


@pytest.mark.parametrize("name", REFUSED)
def test_what_reaches_for_the_referee_fails_alone(court, name):
    judged = court(name, **SHORT.get(name, {}))
    judged.measure(arm(name))
    cell = judged.cell(arm(name))
    assert cell.status == "failed" and f"method '{method_id(name)}'" in cell.error and REFUSED[name] in cell.error


@confined
@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_data_and_ledger_are_out_of_reach(court, name, folder):
    judged = court(name)
    judged.measure(arm(name))
    cell = judged.cell(arm(name))
    assert cell.status == "failed" and OUT_OF_REACH[name] in cell.error
    assert not (folder / ".pruneaudit" / "ledger" / "work").exists()


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_method_does_to_its_own_process_changes_nothing(court, name):
    judged = court(name)
    assert failed(judged.findings(arm(name))) == {}
    odd, plain = judged.evidence(arm(name)), judged.evidence(arm("l1"))
    assert odd.prune.weights_digest == plain.prune.weights_digest
    assert odd.result.weights_digest == plain.result.weights_digest
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


@pytest.mark.parametrize("name", FAIR)
def test_accuracy_on_held_out_images_stays_with_the_referee(court, name):
    judged = court(name)
    assert failed(judged.findings(arm(name))) == {}
    # The referee has the curves all the same.
    curve = judged.evidence(arm(name)).prune.test_accuracy
    assert len(curve) == 2 and all(0 < value <= 100 for value in curve)


def test_declared_recalibration_is_no_training(tmp_path):
    judged = IsolatedCourt(tmp_path / "ledger", ROGUES / "recalibrates.py")
    assert failed(judged.findings(arm("recalibrates", CONVNET))) == {}
    conduct = judged.evidence(arm("recalibrates", CONVNET)).prune.conduct
    assert conduct.rewritten and conduct.untrained.accuracy <= conduct.untrained.at_most == 30
    assert conduct.renumbered.accuracy >= conduct.renumbered.at_least + 5


@pytest.mark.parametrize(("name", "ratio"), [("tpp", 0.5), ("l1-kernorth", 0.5), ("random", 0.9)])
def test_a_process_of_its_own_changes_no_bit(folder, tmp_path, name, ratio):
    """Also of the rival, after all that ran in this process."""
    inside, outside = Court(tmp_path / "inside"), IsolatedCourt(tmp_path / "outside", isolate="always")
    for court in (inside, outside):
        shutil.copytree(folder / ".pruneaudit" / "ledger" / "runs", court.ledger.root / "runs", dirs_exist_ok=True)
        court.measure(arm(name, ratio=ratio))
    one, other = inside.evidence(arm(name, ratio=ratio)), outside.evidence(arm(name, ratio=ratio))
    volatile = {"seconds", "training_seconds", "finished", "conduct"}
    assert one.prune.model_dump(exclude=volatile) == other.prune.model_dump(exclude=volatile)
    assert one.result.model_dump(exclude=volatile) == other.result.model_dump(exclude=volatile)
    told = other.prune.conduct
    assert (
        told.isolation
        and told.model_copy(update={"isolation": "", "untrained": None, "renumbered": None}) == one.prune.conduct
    )


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_no_class_keeps_its_number(classes):
    numbers = isolation.other_numbers(classes, seed=3)
    assert sorted(numbers.tolist()) == list(range(classes))
    assert not (numbers == torch.arange(classes)).any()
    assert torch.equal(numbers, isolation.other_numbers(classes, seed=3))


class Tied(torch.nn.Module):
    """Its last layer gives the classes, and is its first one, too."""

    def __init__(self, tied=True):
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        if tied:
            self.last.weight = self.first.weight

    def forward(self, values):
        return self.last(self.first(values).relu())


def test_only_a_layer_that_gives_the_classes_and_nothing_else_has_their_numbers():
    values = torch.rand(2, 4)
    assert isolation.classifier(Tied(tied=False), values, 4) == "last"
    assert isolation.classifier(Tied(tied=False).double(), values, 4) == "last"
    assert isolation.classifier(Tied(), values, 4) is None
    assert isolation.classifier(Tied(tied=False), values, 5) is None
    # What comes behind it may treat classes differently; tokens are no classes of an image.
    assert isolation.classifier(torch.nn.Sequential(Tied(tied=False), torch.nn.Softmax(1)), values, 4) is None
    assert isolation.classifier(Tied(tied=False), values[None], 4) is None
    assert isolation.classifier(shapes.dense_network(Catalog().workload(LENET)), torch.zeros(1, 1, 32, 32), 10) == "fc2"


def test_what_ran_beside_the_referee_cannot_be_judged_fair(folder, tmp_path):
    judged = IsolatedCourt(tmp_path / "ledger", folder / "recalibrates.py", isolate="never")
    found = failed(judged.findings(arm("recalibrates")))
    assert found["F511"] == "it ran in the referee's own process (--audit-isolate never)"
    assert failed(judged.findings(arm("l1"))) == {}


def test_a_method_is_described_without_its_code(folder):
    source = next(
        source
        for name, source in Catalog(
            extra_methods=(str(folder / "one_step_licence.py"),), isolate="foreign", outside=described
        ).methods.items()
        if name == "one-step-licence"
    )
    cls, method = source.cls, source.create()
    assert (cls.__name__, cls.summary()) == ("OneStepLicence", 'L1 norm after "one step".')
    assert (method.name, method.rewrites, method.granularity) == ("one-step-licence", True, "filter")
    workload = Catalog().workload(LENET)
    assert (method.budget(workload).steps, method.budget(workload).samples) == (1, 1_000_000)
    assert method.skip(workload) is None
    digest = source.digest
    assert not [name for name in sys.modules if "one_step_licence" in name]
    assert digest == digest_inside(source)


def test_few_processes_wait_for_questions(folder, monkeypatch):
    """Those of methods that were not asked for longest are ended, and begin again when they are asked."""
    monkeypatch.setattr(isolation, "MOST_DESCRIBING", 2)
    names = ("honest_habits", "one_step_licence", "moves_the_target")
    files = tuple(str(folder / f"{name}.py") for name in names)
    catalog = Catalog(extra_methods=files, isolate="foreign", outside=described)
    methods = [catalog.method(method_id(name)).create() for name in names]
    waiting = [one.process._pid for one in isolation._descriptions.values()]
    assert len(waiting) == 2
    workload = catalog.workload(LENET)
    assert [method.budget(workload).steps for method in methods] == [0, 1, 0]
    again = [one.process._pid for one in isolation._descriptions.values()]
    assert len(again) == 2 and again != waiting
    for pid in set(waiting) - set(again):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def digest_inside(source):
    """As an in-process source says: isolation does not change what a method is."""
    return Catalog(extra_methods=(str(source.path),)).method(source.name).digest


def test_shipped_methods_are_as_they_are():
    path, known = content_root() / "methods" / "shipped.toml", shipped()
    lines = []
    for file in sorted((content_root() / "methods").glob("*.py")):
        content = file.read_bytes()
        whole, code = hashlib.sha256(content).hexdigest(), code_digest(content)
        before = known.get(file.name, {})
        # What says something else is another method, unless somebody knows that its numbers are the same.
        identity = before["identity"] if before.get("code") == code else code
        lines.append(f'"{file.name}" = {{ file = "{whole}", code = "{code}", identity = "{identity}" }}\n')
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(head + "".join(lines))
    assert path.read_text() == head + "".join(lines)


def test_an_edited_method_is_anybodys(tmp_path):
    catalog = Catalog(isolate="foreign")
    assert not catalog.isolates(catalog.method("l1"))
    shutil.copytree(catalog.root / "methods", tmp_path / "methods")
    with (tmp_path / "methods" / "l1.py").open("a") as file:
        file.write("# mine\n")
    edited = Catalog(root=tmp_path, isolate="foreign")
    assert edited.isolates(edited.method("l1")) and not edited.isolates(edited.method("tpp"))


def test_checks_of_the_contract_run_in_its_process(folder):
    catalog = Catalog(
        extra_methods=(str(folder / "honest_habits.py"), str(folder / "leaves_quietly.py")),
        isolate="foreign",
        outside=described,
    )
    check("describes-itself", catalog, "honest-habits", LENET, Runtime())
    with pytest.raises(MethodError, match="ended before it answered"):
        check("meets-target", catalog, "leaves-quietly", LENET, Runtime())


def refused_by_the_kernel(name, *arguments):
    """A call of the C library; raises where it fails."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


@confined
def test_a_repetition_finds_no_note(court):
    """Not in shared memory, not with the kernel, not on files or devices, not where it printed, not in a process."""
    judged = court("leaves_notes")
    found = failed(judged.findings(arm("leaves_notes")))
    # That it forks is told; what it is after is not there.
    assert found == {"F511": "program: os.fork"}
    noted, plain = judged.evidence(arm("leaves_notes")), judged.evidence(arm("l1"))
    assert noted.prune.conduct.replay == "same"
    assert noted.prune.weights_digest == plain.prune.weights_digest
    assert not list(Path("/dev").glob("*/pruneaudit-note"))
    names = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            names.append(path.read_text().strip())
    assert "pruneaudit-note" not in names


@confined
def test_other_processes_are_closed(court):
    """Their environment, which names the test that runs, and their memory; nor can they be ended."""
    judged = court("looks_around")
    assert failed(judged.findings(arm("looks_around"))) == {}
    looked, plain = judged.evidence(arm("looks_around")), judged.evidence(arm("l1"))
    assert looked.prune.weights_digest == plain.prune.weights_digest


MEMORY = """
import sys
from pathlib import Path
from pruneaudit import sandbox
theirs, note, needed, scratch = map(Path, sys.argv[1:])
own = sandbox.own_memory([needed])
sandbox.confine([], scratch, own)
try:
    note.write_text("I was here")
    wrote = note.exists()
except PermissionError:
    wrote = False
print(own, theirs.exists(), wrote)
"""


@confined
def test_shared_memory_of_others_stays_and_no_note_comes_to_lie_in_it(tmp_path):
    """A process has memory of its own, or may write none; files of others, also new ones that nobody holds, stay."""
    theirs, note = (Path(f"/dev/shm/pruneaudit-{os.getpid()}-{kind}") for kind in ("theirs", "note"))
    theirs.write_text("a dataset, say")

    def told(needed):
        command = [sys.executable, "-c", MEMORY, *map(str, (theirs, note, needed, tmp_path))]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()

    try:
        own, sees, wrote = told(tmp_path)
        # Workers of data loaders have memory where the system lets a process have its own.
        assert (sees, wrote) == (("False", "True") if own == "True" else ("True", "False"))
        # What it needs may lie there: it is then seen, and nothing can be written beside it.
        assert told(theirs) == ["False", "True", "False"]
        assert theirs.read_text() == "a dataset, say" and not note.exists()
    finally:
        theirs.unlink()


@confined
def test_a_confined_process_sees_what_is_not_hidden(tmp_path):
    for name in ("hidden", "scratch"):
        (tmp_path / name).mkdir()
    (tmp_path / "hidden" / "secret").write_text("secret")
    (tmp_path / "known").write_text("known")
    listener = socket.create_server(("127.0.0.1", 0))
    ours, theirs = socket.socketpair()
    _, terminal = os.openpty()
    disk = os.stat(tmp_path).st_dev
    device = next(
        (path for path in Path("/dev").glob("*") if path.is_block_device() and os.access(path, os.R_OK)), None
    )

    def refuse():
        raise OSError("there is none")

    if not os.fork():
        sandbox.confine([tmp_path / "hidden"], tmp_path / "scratch")
        tries = {
            "reads what is known": lambda: (tmp_path / "known").read_text(),
            "writes into scratch": lambda: (tmp_path / "scratch" / "new").write_text("new"),
            "reads what is hidden": lambda: (tmp_path / "hidden" / "secret").read_text(),
            "writes elsewhere": lambda: (tmp_path / "new").write_text("new"),
            "removes": lambda: (tmp_path / "known").unlink(),
            "calls": lambda: socket.create_connection(listener.getsockname(), 5),
            "signals": lambda: os.kill(os.getppid(), 0),
            "sends": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            "pairs": lambda: socket.socketpair(),
            "dates": lambda: os.utime(tmp_path / "known", (1, 1)),
            "opens": lambda: os.chmod(tmp_path / "hidden", 0o777),
            "keeps": lambda: refused_by_the_kernel("shmget", 1, 64, 0o1600),
            "queues": lambda: refused_by_the_kernel("mq_open", b"/note", os.O_CREAT, 0o600, None),
            # What is tried on another process sets what it has already.
            "limits another": lambda: resource.prlimit(
                os.getppid(), resource.RLIMIT_NOFILE, resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)
            ),
            "moves another": lambda: os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0)),
            "slows all": lambda: os.setpriority(os.PRIO_USER, 0, os.getpriority(os.PRIO_PROCESS, 0)),
            "types": lambda: fcntl.ioctl(terminal, termios.TIOCSTI, b"x"),
            "makes a disk": lambda: os.mknod(tmp_path / "scratch" / "disk", stat.S_IFBLK | 0o600, disk),
            "reads the disk": lambda: os.close(os.open(device, os.O_RDONLY)) if device else refuse(),
            "limits itself": lambda: resource.setrlimit(
                resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)
            ),
            "moves itself": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
            "asks its terminal": lambda: termios.tcgetattr(terminal),
        }
        done = []
        for name, action in tries.items():
            try:
                action()
                done.append(name)
            except OSError:
                pass
        theirs.sendall(";".join(done).encode())
        os._exit(0)
    theirs.close()
    os.wait()
    done = set(ours.recv(4096).decode().split(";"))
    ours.close()
    listener.close()
    may = {"reads what is known", "writes into scratch", "pairs", "limits itself", "moves itself", "asks its terminal"}
    if not sandbox.filters_calls():
        # And what the kernel lets somebody do who is not root.
        done &= may | {"sends", "dates", "opens", "keeps", "queues", "calls", "signals"}
        may |= {"sends", "dates", "opens", "keeps", "queues"}
    may |= set() if sandbox.version() >= 4 else {"calls"}
    may |= set() if sandbox.version() >= 6 else {"signals"}
    assert done == may


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("decides nothing", "its process says 'pruned' and not what: kept: missing; this key is required"),
        ("less than no step", "says 'pruned' and not what: consumption.optimiser_steps: Input should be greater than"),
        ("epochs of no training", "its process says too little of its training, or too much"),
        ("thirty gigabytes", "its process said too much at once: 32212254722 bytes"),
        ("a batch of none", "its process says 'batch' and not what: size: Input should be greater than 0"),
        ("red", "?[31mred"),
    ],
)
def test_whatever_a_process_says_costs_its_own_cell_alone(folder, monkeypatch, word, said):
    """In one line, before there is room made for it."""
    monkeypatch.chdir(folder)
    spec = f"{folder}/forges_words.py:ForgesWords(word='{word}')"
    judged, name = IsolatedCourt(folder / ".pruneaudit" / "ledger", spec), method_source(spec).name
    judged.measure(arm(name))
    cell = judged.cell(arm(name))
    assert cell.status == "failed" and said in cell.error and cell.error.isprintable()


NOTHING = {
    "training_samples": 0,
    "scoring_samples": 0,
    "optimiser_steps": 0,
    "rates": [],
    "batch": 0,
    "settings": {},
    "added": {},
    "own_macs": 0,
    "frozen": [],
    "taught_samples": 0,
    "steps_macs": {},
}
CURVES = {field.name: [] for field in fields(History)}
DECIDED = {
    "kept": {"conv1": [0, 1]},
    "granularity": "filter",
    "scope": "layerwise",
    "consumption": NOTHING,
    "history": CURVES,
    "epoch_starts": [],
    "rewritten": [],
    "touched": [],
    "foreign": 0,
    "reached": [],
}


def test_a_word_is_read_as_it_was_said():
    assert words.read("pruned", DECIDED) == DECIDED
    assert words.read("pruned", DECIDED | {"touched": ["a\x1b[31m"]})["touched"] == ["a?[31m"]


@pytest.mark.parametrize(
    ("kind", "change", "where"),
    [
        ("pruned", {"more": 1}, "more: unknown key"),
        ("pruned", {"kept": None}, "kept: "),
        ("pruned", {"kept": {"conv1": 3}}, "kept.conv1: "),
        ("pruned", {"granularity": "banana"}, "granularity: "),
        ("pruned", {"foreign": -1}, "foreign: "),
        ("pruned", {"foreign": math.inf}, "foreign: "),
        ("pruned", {"foreign": 10**5000}, "foreign: "),
        ("pruned", {"touched": "conv1"}, "touched: "),
        ("pruned", {"reached": ["\ud800"]}, "reached.0: "),
        ("pruned", {"reached": ["x" * 20_000]}, "reached.0: "),
        ("pruned", {"epoch_starts": ["first"]}, "epoch_starts.0: "),
        ("pruned", {"history": {**CURVES, "train_loss": [{}]}}, "history.train_loss.0: "),
        ("pruned", {"history": {**CURVES, "own": []}}, "history.own: unknown key"),
        ("pruned", {"consumption": {**NOTHING, "rates": [[math.nan, 1]]}}, "consumption.rates.0.0: "),
        (
            "pruned",
            {"consumption": {**NOTHING, "settings": {"lr": [math.nan]}}},
            "consumption.settings.lr: expected fin",
        ),
        ("pruned", {"consumption": {**NOTHING, "own_macs": -1}}, "consumption.own_macs: "),
        ("began", {"digest": "same"}, "digest: "),
        ("answer", {}, "value: missing"),
        ("batch", {"stream": 3, "epoch": 0, "size": 1, "number": 0, "double": False}, "stream: "),
        ("batch", {"stream": "prune", "epoch": 0, "size": 1, "number": 1e300, "double": False}, "number: "),
        ("confined", {"by": ["Landlock"]}, "by: "),
        ("error", {"text": "none"}, "type: missing"),
        ("anything", {}, "there is no such word"),
    ],
)
def test_a_word_that_is_none_is_refused_by_what_it_lacks(kind, change, where):
    with pytest.raises(ValueError, match=f"^{re.escape(where)}") as caught:
        words.read(kind, DECIDED | change if kind == "pruned" else change)
    assert len(str(caught.value)) < 500


def test_who_speaks_for_others_is_not_heard(folder):
    catalog = Catalog(extra_methods=(str(folder / "speaks_for_others.py"),), isolate="foreign", outside=described)
    before = Catalog().method("l1").digest
    assert catalog.method("speaks-for-others").digest
    assert Catalog().method("l1").digest == before


@confined
def test_what_a_method_says_of_itself_rests_on_no_data_and_no_results(folder):
    catalog = Catalog(extra_methods=(str(folder / "reads_at_import.py"),), isolate="foreign", outside=describing())
    with pytest.raises(MethodError, match="opens data: "):
        catalog.method("reads-at-import").create()


def test_what_a_method_prints_is_passed_on_to_the_last_word(tmp_path, capfd):
    """Also what it did not ask to be printed at once: its process ends without a further look."""
    (tmp_path / "prints.py").write_text(
        "import sys\nfrom pruneaudit import FilterScore\nprint('a line')\nprint('an error', file=sys.stderr)\n"
        "class Prints(FilterScore):\n    def score(self, layer, task): ...\n"
    )
    with Process(Catalog(extra_methods=(str(tmp_path / "prints.py"),)).method("prints"), patience=60) as process:
        process.tell(child.Describe())
        assert process.hear().kind == "described"
    told = capfd.readouterr()
    assert (told.out, told.err) == ("a line\n", "an error\n")


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"\xff" * 16, "said too much at once"),
        ((7).to_bytes(8, "big") + bytes(8) + b"no json", "no message"),
        ((2).to_bytes(8, "big") + bytes(8) + b"{}", "no message"),
        (b"", "ended before it answered"),
    ],
    ids=["sizes", "no JSON", "no kind", "nothing"],
)
def test_what_is_no_message_is_refused(sent, said):
    ours, theirs = socket.socketpair()
    theirs.sendall(sent)
    theirs.close()
    with pytest.raises(HungUpError, match=said):
        Line(ours).hear(5)


def test_patience_is_for_a_whole_word():
    """Who says one byte now and then, or asks and takes no answer, lets wait as well as who is silent."""
    ours, theirs = socket.socketpair()
    over = threading.Event()

    def trickle():
        while not over.wait(0.02):
            theirs.send(b"\0")

    thread = threading.Thread(target=trickle)
    thread.start()
    with pytest.raises(SilentError, match=r"said nothing for 0\.3 seconds"):
        Line(ours).hear(0.3)
    over.set()
    thread.join()
    with pytest.raises(SilentError, match=r"did not listen for 0\.1 seconds"):
        Line(theirs).tell(bytes(1 << 24), 0.1)
    ours.close()
    theirs.close()


def test_tensors_cross_by_value_and_in_any_layout():
    ours, theirs = (Line(end) for end in socket.socketpair())
    tensors = {
        "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "one value": torch.tensor(3),
        "mask": torch.rand(4) > 0.5,
        "double": torch.rand(3, dtype=torch.float64, requires_grad=True),
    }
    theirs.say("some", tensors, number=1)
    heard = ours.hear(5)
    assert (heard.kind, heard.facts) == ("some", {"number": 1})
    assert all(torch.equal(heard.tensors[name], tensor) for name, tensor in tensors.items())
    ours.tell(tensors["channels last"])
    assert theirs.listen().stride() == tensors["channels last"].stride()


@pytest.mark.parametrize(
    ("much", "said"),
    [
        ("memory", "wants more memory than the 0.5 GiB that its process may have; run fewer workers"),
        ("one file", "raised OSError: [Errno 27] File too large"),
        ("files", "its process writes more than 8 MiB into its folder"),
        ("words", "its process prints more than 8 MiB"),
    ],
)
def test_who_takes_too_much_of_the_machine_ends_alone(folder, much, said):
    """In one line, before the machine has none left, and nothing of it stays."""
    catalog = Catalog(extra_methods=(f"{folder}/takes_too_much.py:TakesTooMuch(what='{much}')",))
    source = next(source for name, source in catalog.methods.items() if name.startswith("takes-too-much"))
    # The kernel's own limit is seen where nobody looks meanwhile.
    look = 60.0 if much == "one file" else 0.02
    limits = Limits(memory=1 << 29, written=(32 if much == "words" else 8) << 20, printed=8 << 20, look=look)
    with Process(source, patience=60, limits=limits) as one, pytest.raises(MethodError) as caught:
        scratch = Path(one._folder)
        one.tell(child.Describe())
        one.hear()
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not scratch.exists()


def test_an_honest_process_has_its_share_of_the_memory():
    free = free_memory()
    if free is None:
        pytest.skip("nobody says how much memory is free here")
    assert Limits.of("cpu", 1).memory >= min(free / 2, 1 << 31) and Limits.of("cuda", 1).memory == 0
    assert Limits.of("cpu", 10**9).memory == 1 << 31


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux ends a process with its parent")
def test_a_process_ends_with_who_asked_for_it():
    """Also where that was killed while the method hangs."""
    origin = Origin()
    line, *ids, printed = origin.fork()
    alive = [os.pidfd_open(pid) for pid in ids]
    assert not select.select(alive, [], [], 0)[0]
    origin._process.kill()
    origin._process.wait()
    for one in alive:
        assert select.select([one], [], [], 60)[0]
        os.close(one)
    line.close()
    printed.close()


def test_nothing_is_left_running(folder):
    source = Catalog(extra_methods=(str(folder / "hangs.py"),)).method("hangs")
    with Process(source, patience=5) as process:
        process.tell(child.Describe())
        assert process.hear().kind == "described"
        scratch = process._folder
    assert not Path(scratch).exists()
    with pytest.raises(ProcessLookupError):
        for _ in range(500):
            os.kill(process._pid, 0)
            time.sleep(0.01)
