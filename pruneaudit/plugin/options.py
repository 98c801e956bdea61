"""Options of the suite: one prefix, few; everything else is in the TOML files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pruneaudit.errors import unknown

if TYPE_CHECKING:
    import pytest

DEFAULTS: dict[str, Any] = {
    "audit_method": [],
    "audit_workload": [],
    "audit_methods": None,
    "audit_protocols": None,
    "audit_ratios": None,
    "audit_seeds": None,
    "audit_decide": None,
    "audit_budget": "full",
    "audit_ledger": ".pruneaudit/ledger",
    "audit_report": "reports/latest",
    "audit_figures": "auto",
    "audit_data_root": None,
    "audit_download": False,
    "audit_executor": "local",
    "audit_task": None,
    "audit_device": "auto",
    "audit_isolate": "foreign",
    "audit_patience": 60.0,
    "audit_stage_limit": 168.0,
    "audit_recheck": 10.0,
    "audit_precision": "fp32",
    "audit_backend": "auto",
    "audit_arithmetic": "native",
    "audit_ranks": None,
    "audit_base": None,
    "audit_study": None,
    "audit_against": None,
    "audit_fail_on": None,
    "audit_from": None,
    "audit_baseline": None,
}


def with_values() -> frozenset[str]:
    """Options that take a value, as they are written."""
    names = (name for name, default in DEFAULTS.items() if default is not False)
    return frozenset(f"--{name.replace('_', '-')}" for name in names)


def _one_of(option: str, *known: str) -> dict[str, Any]:
    """How an option is told that takes one of some values; another one is refused in one line."""

    def read(text: str) -> str:
        if text not in known:
            # Where argparse knows the choices, it shows the usage of all options of pytest instead.
            import pytest

            raise pytest.UsageError(f"{option}: {unknown('value', text, known)}")
        return text

    return {"type": read, "metavar": f"{{{','.join(known)}}}"}


def add_options(parser: pytest.Parser) -> None:
    """Register the options."""
    group = parser.getgroup("pruneaudit", "pruneaudit: fairness audit of pruning methods")
    group.addoption(
        "--audit-method",
        action="append",
        default=[],
        metavar="SPEC",
        help="Also audit this method: file.py, file.py:Class or package.module:Class, with hyper-parameters as in "
        "'mine.py:Mine(strength=0.3)'. Repeatable.",
    )
    group.addoption(
        "--audit-workload",
        action="append",
        default=[],
        metavar="SPEC",
        help="Also audit on this workload: file.toml, a folder of them or package.module:attribute. Repeatable.",
    )
    group.addoption(
        "--audit-methods",
        default=DEFAULTS["audit_methods"],
        metavar="core|all|A,B",
        help="Methods to run. Default: core (l1, random, tpp and the scratch arms).",
    )
    group.addoption(
        "--audit-protocols",
        default=DEFAULTS["audit_protocols"],
        metavar="all|A,B",
        help="Comparison setups to run, such as s3.2,sx-b. Default: all but pt, which does not retrain.",
    )
    group.addoption(
        "--audit-ratios",
        default=DEFAULTS["audit_ratios"],
        metavar="A,B",
        help="Also prune at these ratios, such as 0.6,0.8. Default: the ratios of each workload.",
    )
    group.addoption(
        "--audit-seeds",
        type=int,
        default=None,
        metavar="N",
        help="Run seeds 0 to N-1. Default: the seeds of each workload.",
    )
    group.addoption(
        "--audit-decide",
        type=int,
        default=None,
        metavar="N",
        help="Decide comparisons seed by seed: six seeds of all arms, then, up to seed N-1, only of those whose "
        "comparisons are open. The plan is written to the ledger before the first of them trains.",
    )
    group.addoption(
        "--audit-budget",
        **_one_of("--audit-budget", "smoke", "short", "full"),
        default=DEFAULTS["audit_budget"],
        help="Scale all training lengths; results of reduced budgets are kept apart. Default: full.",
    )
    group.addoption(
        "--audit-ledger",
        default=DEFAULTS["audit_ledger"],
        metavar="DIR",
        help="Store of run records. Default: .pruneaudit/ledger below the project.",
    )
    group.addoption(
        "--audit-report",
        default=DEFAULTS["audit_report"],
        metavar="DIR",
        help="Where the report goes. Default: reports/latest below the project.",
    )
    group.addoption(
        "--audit-figures",
        **_one_of("--audit-figures", "auto", "1", "2", "none"),
        default=DEFAULTS["audit_figures"],
        help="Figures of the report, one or two columns of a paper wide. Default: 2.",
    )
    group.addoption(
        "--audit-data-root",
        default=None,
        metavar="DIR",
        help="Folder with datasets in torchvision's layout. Default: $PRUNEAUDIT_DATA.",
    )
    group.addoption(
        "--audit-download",
        action="store_true",
        default=False,
        help="Let torchvision download missing datasets into the data root",
    )
    group.addoption(
        "--audit-isolate",
        **_one_of("--audit-isolate", "always", "foreign", "never"),
        default=DEFAULTS["audit_isolate"],
        help="Which methods run in a process of their own, out of reach of data, ledger and referee. Default: foreign, "
        "all that are not this project's own as released. What ran beside the referee cannot be judged fair (F511).",
    )
    group.addoption(
        "--audit-patience",
        type=float,
        default=DEFAULTS["audit_patience"],
        metavar="MINUTES",
        help="A method that says nothing for so long in a process of its own has failed. Default: 60.",
    )
    group.addoption(
        "--audit-stage-limit",
        type=float,
        default=DEFAULTS["audit_stage_limit"],
        metavar="HOURS",
        help="A method that is waited for longer than that in one stage, all its answers together, has failed. "
        "Default: 168, a week.",
    )
    group.addoption(
        "--audit-recheck",
        type=float,
        default=DEFAULTS["audit_recheck"],
        metavar="SECONDS",
        help="Before the report, evaluate stored weights again that nobody has evaluated since they were trained, in a "
        "process of its own, for so long; the next report goes on. 0: not at all. Default: 10.",
    )
    group.addoption(
        "--audit-executor",
        default=DEFAULTS["audit_executor"],
        metavar="local|slurm|ray[:HOST:PORT]",
        help="Where runs are computed. slurm, ray: as tasks of a cluster whose nodes see the same folders; this "
        "session submits them, waits and judges. Default: local, by the processes of this session.",
    )
    group.addoption(
        "--audit-task",
        default=DEFAULTS["audit_task"],
        metavar="TEXT",
        help="What each task asks of the cluster: of slurm, options of sbatch, as in --audit-task='--gpus=1'; of "
        "ray, as in --audit-task=cpus=2,gpus=0.25. Default: one processor, and of ray a GPU where runs train on CUDA. "
        "With apart, Ray's nodes need not see the ledger: runs travel to them and back.",
    )
    group.addoption(
        "--audit-device",
        **_one_of("--audit-device", "auto", "cpu", "cuda"),
        default=DEFAULTS["audit_device"],
        help="Device to train on; cpu insists even for GPU-sized workloads. Default: cuda if there is one, else cpu.",
    )
    group.addoption(
        "--audit-precision",
        **_one_of("--audit-precision", "fp32", "bf16", "fp64", "pure-bf16"),
        default=DEFAULTS["audit_precision"],
        help="Arithmetic of training; results of different precisions are kept apart. Default: fp32.",
    )
    group.addoption(
        "--audit-backend",
        **_one_of("--audit-backend", "auto", "torch", "compiled", "tiled", "grouped", "fused", "graphed"),
        default=DEFAULTS["audit_backend"],
        help="What trains: torch, one run at a time; tiled, plain and residual convolutional networks on a CPU "
        "several times faster; grouped, runs of one shape as one network; fused, the same in fewer kernels, compiled "
        "by torch; graphed, single runs side by side as CUDA graphs; compiled, of earlier versions, only judges, with "
        "--audit-from. Results of different backends are kept apart. Default: auto, for each workload what made the "
        "ledger's runs, else the one of the first two that is faster on this machine, measured in seconds.",
    )
    group.addoption(
        "--audit-arithmetic",
        **_one_of("--audit-arithmetic", "native", "portable"),
        default=DEFAULTS["audit_arithmetic"],
        help="portable: the same bits on every x86-64 machine of the last ten years, as far as libraries can be held "
        "to it; results are kept apart. Default: native, what each library does best on this processor.",
    )
    group.addoption(
        "--audit-ranks",
        type=int,
        default=None,
        metavar="N",
        help="Share each training of the harness among so many processes, each on a device of its own and on its part "
        "of every batch: another training than on one device, kept apart. Default: what recipes say, mostly 1.",
    )
    group.addoption(
        "--audit-base",
        default=None,
        metavar="FILE",
        help="Base model of every selected workload: a safetensors file, or a PyTorch checkpoint (.pth, .pt, .bin). "
        "Default: train one for each seed.",
    )
    group.addoption(
        "--audit-study",
        default=None,
        metavar="NAME|FILE",
        help="A comparison written down in TOML: methods, protocols, rivals, waivers. Other options win over it.",
    )
    group.addoption(
        "--audit-against",
        default=None,
        metavar="A,B",
        help="Judge the other methods against these rivals only; verdicts become tests that can fail.",
    )
    group.addoption(
        "--audit-fail-on",
        default=None,
        metavar="LIST",
        help="Verdicts that fail: worse, unfair, indeterminate, equivalent, better. Default with rivals or a baseline: "
        "worse,unfair.",
    )
    group.addoption(
        "--audit-from",
        default=None,
        metavar="DIR",
        help="Judge what this ledger holds and train nothing; what it lacks makes the session incomplete.",
    )
    group.addoption(
        "--audit-baseline",
        default=None,
        metavar="DIR",
        help="Compare results with those of an earlier version in this ledger.",
    )
