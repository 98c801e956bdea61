"""The ``pruneaudit`` command: what there is, what is planned, what was measured."""

from __future__ import annotations

import gc
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from pruneaudit.errors import AuditError, ConfigError, DamagedError
from pruneaudit.version import __version__


class _Commands(TyperGroup):
    """The commands, with a help that says how the audit itself is run from where one is."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from pruneaudit.catalog.discovery import suite_command

        self.help = f"The referee for neural-network pruning. Run the audit itself with '{suite_command()}'."
        super().format_help(ctx, formatter)


app = typer.Typer(cls=_Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LedgerPath = Annotated[Path, typer.Option("--ledger", help="Store of run records.")]
MethodSpecs = Annotated[
    list[str] | None,
    typer.Option(
        "--audit-method", metavar="SPEC", help="Also this method: file.py, file.py:Class or package.module:Class."
    ),
]
WorkloadSpecs = Annotated[
    list[str] | None,
    typer.Option(
        "--audit-workload",
        metavar="SPEC",
        help="Also this workload: file.toml, a folder of them or package.module:attribute.",
    ),
]
_LEDGER = Path(".pruneaudit/ledger")


def main() -> None:
    """Entry point: bad input ends with one line on stderr and exit code 2."""
    try:
        app(standalone_mode=True)
        sys.stdout.flush()
    except AuditError as error:
        sys.stderr.write(f"pruneaudit: {error}\n")
        raise SystemExit(2) from None
    except BrokenPipeError:
        # Whoever read it has enough, as `head` has: nothing is left to say, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[METHOD]", help="Describe this method: a name, or a file.")
    ] = None,
    audit_method: MethodSpecs = None,
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of all methods.")] = False,
) -> None:
    """List the pruning methods with their place in the field's taxonomy, or describe one."""
    from pruneaudit.catalog.discovery import Catalog, method_source
    from pruneaudit.method import cards
    from pruneaudit.method.outside import describing

    specs = tuple(audit_method or ())
    if name and _is_spec(name):
        specs, name = (*specs, name), method_source(name).name
    catalog = Catalog(extra_methods=specs, isolate="foreign", outside=describing())
    if as_markdown:
        typer.echo(cards.page(catalog), nl=False)
        return
    rows = cards.rows(catalog, [name] if name else ())
    if name:
        reasons = cards.refusals(catalog, name, catalog.workloads.values())
        rows[0]["not_for"] = [f"{', '.join(places)}: {reason}" for reason, places in reasons.items()]
    more = (
        ["in_retraining", "teacher", "published_recipe", "parameters", "not_for", "defined_in", "description"]
        if name
        else []
    )
    _show(rows, [*cards.COLUMNS, *more], as_json)


@app.command()
def protocols(as_json: Json = False) -> None:
    """List the comparison setups."""
    from pruneaudit.catalog.discovery import Catalog

    rows = [protocol.model_dump(mode="json") for protocol in Catalog().protocols.values()]
    _show(rows, ["name", "version", "title", "base", "retraining", "pruning", "scratch", "requires"], as_json)


@app.command()
def workloads(audit_workload: WorkloadSpecs = None, as_json: Json = False) -> None:
    """List the workloads."""
    from pruneaudit.catalog.discovery import Catalog

    catalog = Catalog(extra_workloads=tuple(audit_workload or ()))
    rows = [workload.model_dump(mode="json") for workload in catalog.workloads.values()]
    # What decides is known by its name; the rest of it is for programs.
    told = rows if as_json else [row | {"metric": row["metric"]["name"]} for row in rows]
    _show(told, ["name", "version", "model", "metric", "ratios", "seeds", "gpu", "source"], as_json)


@app.command()
def claims(as_json: Json = False) -> None:
    """List the published tables that runs are shown beside."""
    from pruneaudit.catalog.discovery import Catalog

    rows = [table.model_dump(mode="json") | {"claims": len(table.claims())} for table in Catalog().claims.values()]
    _show(rows, ["name", "paper", "table", "n", "std", "epoch", "claims", "source"], as_json)


@app.command()
def rules(
    rule_id: Annotated[str | None, typer.Argument(metavar="[RULE]", help="Explain this rule.")] = None,
    as_json: Json = False,
) -> None:
    """List the fairness rules, or explain one."""
    from pruneaudit.audit.catalogue import get_rule, required
    from pruneaudit.audit.catalogue import rules as all_rules
    from pruneaudit.catalog.discovery import Catalog

    known = [get_rule(rule_id)] if rule_id else list(all_rules().values())
    rows = [
        {
            "id": rule.id,
            "claim": rule.claim,
            "source": rule.source,
            "measures": rule.explanation,
            "example": rule.example,
            "looks_at": rule.scope if rule.scope != "arm" else f"arm ({rule.on})",
            "required_by": [name for name, protocol in Catalog().protocols.items() if rule.id in required(protocol)],
        }
        for rule in known
    ]
    _show(
        rows,
        ["id", "claim", "source", "required_by", *(["looks_at", "measures", "example"] if rule_id else [])],
        as_json,
    )


@app.command()
def tables(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE…", help="CSV, TSV, Markdown, LaTeX, HTML, JSON, text, logs, TOML of claims."),
    ] = None,
    as_json: Json = False,
    as_sarif: Annotated[bool, typer.Option("--sarif", help="Print SARIF 2.1.0, as code hosts read it.")] = False,
    to: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Also write tables.html and tables.json there.")
    ] = None,
    fail_on: Annotated[
        str,
        typer.Option(
            metavar="RULES", help="What ends with exit code 1: ids, contradiction, unequal, missing, all or none."
        ),
    ] = "all",
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="HEADER=KIND", help="Meaning of a column, such as 'Base=base_accuracy'."),
    ] = None,
    show_setups: Annotated[
        bool, typer.Option("--setups", help="Also print the strictest setup that each pair of rows is shown to meet.")
    ] = False,
    corpus: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of ShrinkBench's exports: count who compares with whom, and stop."),
    ] = None,
    list_rules: Annotated[bool, typer.Option("--rules", help="List the rules of tables, and stop.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of files of claims, and stop.")
    ] = False,
) -> None:
    """Check published tables by what they print: nothing is trained, nothing is downloaded."""
    if schema:
        from pruneaudit.tables.claims import schema as of_claims

        typer.echo(json.dumps(of_claims(), indent=1))
        return
    if list_rules:
        from pruneaudit.tables.catalogue import rules as of_tables

        facts = ("id", "kind", "claim", "source", "explanation", "example")
        _show([{fact: getattr(one, fact) for fact in facts} for one in of_tables().values()], facts[:4], as_json)
        return
    if corpus is not None:
        from pruneaudit.tables.corpus import load

        found = load(corpus)
        if as_json:
            typer.echo(json.dumps({"counts": found.counts(), "bases": found.bases()}, indent=1))
            return
        _show([found.counts()], list(found.counts()), False)
        _show(found.bases(), ["data", "network", "papers", "base_from", "base_to", "spread", "units"], False)
        return
    if not files:
        raise ConfigError("give a file, such as README.md or results.csv")
    from pruneaudit.tables.columns import check_mapping
    from pruneaudit.tables.command import audit_files, failing, sarif

    rules_that_fail = failing(fail_on)
    audited = audit_files(files, check_mapping(mapping or ()))
    if to is not None:
        from pruneaudit.tables.page import write

        for path in write(audited, to):
            typer.echo(f"wrote {path}", err=True)
    if as_json:
        typer.echo(json.dumps(audited.as_json(), indent=1))
    elif as_sarif:
        typer.echo(sarif(audited))
    else:
        for note in audited.notes():
            typer.echo(note, err=True)
        for finding in audited.findings:
            typer.echo(finding.line)
        for setup in audited.setups() if show_setups else ():
            left, right = setup.arms
            reason = f"; {setup.why}" if setup.why else ""
            name = setup.name or "no setup"
            typer.echo(f"{setup.table.path}:{left.line}: {left.method} and {right.method}: {name}{reason}")
        for line in audited.cut() if show_setups else ():
            typer.echo(line, err=True)
    if any(finding.rule.id in rules_that_fail for finding in audited.findings):
        raise typer.Exit(1)


@app.command()
def judge(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Runs, one a row: CSV, JSON, or any table that is read.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Also write page, tables and LaTeX there.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="What decides, where it is not accuracy and no column says it.")
    ] = None,
    direction: Annotated[
        str | None, typer.Option(metavar="HIGHER|LOWER", help="Which values of a metric of your own are better.")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="Unit of a metric of your own, such as %.")] = None,
    margin: Annotated[
        float | None,
        typer.Option(min=0, help="Difference that does not matter, in the metric's unit; of percents in points."),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="HEADER=KIND", help="Meaning of a column, such as 'top1=accuracy'."),
    ] = None,
    as_json: Json = False,
    as_template: Annotated[bool, typer.Option("--template", help="Print a file to begin with, and stop.")] = False,
) -> None:
    """Judge results that you have, run by run: the same statistics and verdicts, marked as stated. Trains nothing."""
    from pruneaudit.tables import judge as given

    if as_template:
        typer.echo(given.template(), nl=False)
        return
    if file is None:
        raise ConfigError("give a file of runs; --template prints one to begin with")
    if margin == 0:
        raise ConfigError("--margin 0: no difference would be too small to matter; give one above 0")
    from pruneaudit.catalog.discovery import Catalog
    from pruneaudit.report.stated import judge as decide
    from pruneaudit.report.stated import lines
    from pruneaudit.tables.columns import check_mapping

    catalog = Catalog()
    said = {"name": metric, "direction": direction and direction.lower(), "unit": unit, "margin": margin}
    runs_of = given.stated(
        file,
        check_mapping(mapping or (), given.OF_METRIC),
        said,
        lambda workload: catalog.workloads[workload].metric if workload in catalog.workloads else None,
    )
    results = decide(catalog, runs_of, margin)
    if as_json:
        typer.echo(json.dumps(results.as_json(), indent=1))
    else:
        for line in lines(results):
            typer.echo(line)
    if to is not None:
        from pruneaudit.report.writer import write

        try:
            for path in write(results, to):
                typer.echo(f"wrote {path}", err=True)
        except OSError as error:
            raise ConfigError(f"report {to}: {error.strerror}; choose another folder with --to") from None


@app.command()
def runs(ledger: LedgerPath = _LEDGER, as_json: Json = False) -> None:
    """List the runs of a ledger, failed attempts included."""
    from pruneaudit.workloads.metrics import ACCURACY

    store = _existing_ledger(ledger)
    rows: list[dict[str, Any]] = []
    for record in store.runs():
        about = {"status": "ok", "slug": record.slug, "run_id": record.run_id, "value": record.value}
        rows.append({**about, **record.model_dump(mode="json")})
    for failure in store.failures():
        rows.append(
            {
                "status": "failed",
                "slug": failure.spec.slug,
                "run_id": failure.spec.run_id,
                "error": failure.error,
                "finished": failure.finished,
                **failure.spec.model_dump(mode="json"),
            }
        )
    for path, problem in store.damaged.items():
        name = path.parent.name if path.name == "record.json" else path.stem
        rows.append({"status": "damaged", "slug": name, "metric": ACCURACY.name, "error": problem})
    others = ["metric", "value"] if any(row["metric"] != ACCURACY.name for row in rows) else []
    _show(rows, ["status", "slug", "run_id", "epochs", "accuracy", *others, "seconds", "error"], as_json)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Id of the run, or how it begins; `pruneaudit runs` lists them.")],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="model.safetensors, model.pt2 or model.onnx.")],
    ledger: LedgerPath = _LEDGER,
) -> None:
    """Write the network that a run left to a file, with its widths."""
    from pruneaudit.campaign.export import export as write
    from pruneaudit.catalog.discovery import Catalog

    write(_existing_ledger(ledger), Catalog(), run, to)
    typer.echo(f"wrote {to}")


@app.command()
def doctor(
    ledger: LedgerPath = _LEDGER,
    data_root: Annotated[str | None, typer.Option("--data-root", help="Folder of datasets.")] = None,
    audit_workload: WorkloadSpecs = None,
    as_json: Json = False,
) -> None:
    """Look at versions, devices, isolation, disk, data and ledger, and say what to do.

    Exit status: 1 where something is wrong.
    """
    from pruneaudit.catalog.discovery import Catalog
    from pruneaudit.doctor import examine
    from pruneaudit.workloads.data import data_root as root_of

    found = list(examine(ledger, Catalog(extra_workloads=tuple(audit_workload or ())), root_of(data_root)))
    if as_json:
        typer.echo(json.dumps([asdict(symptom) for symptom in found], indent=1))
    else:
        for symptom in found:
            advice = f"; {symptom.advice}" if symptom.advice else ""
            typer.echo(f"{symptom.state:5} {symptom.about}: {symptom.found}{advice}")
    if any(symptom.state == "wrong" for symptom in found):
        raise typer.Exit(1)


@app.command()
def verify(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN…]", help="Ids of runs, or how they begin.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All runs of the ledger.")] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Only evaluate the stored weights again, which takes seconds.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Difference of the result that is none, in the metric's unit; default: its margin."),
    ] = None,
    ledger: LedgerPath = _LEDGER,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Device; auto: cuda if there is one.")
    ] = "auto",
    data_root: Annotated[str | None, typer.Option("--data-root", help="Folder of datasets.")] = None,
    base: Annotated[Path | None, typer.Option("--base", help="The user's own base model, where runs have one.")] = None,
    audit_method: MethodSpecs = None,
    audit_workload: WorkloadSpecs = None,
    as_json: Json = False,
) -> None:
    """Evaluate what runs stored, and train them again: bit-identical, within tolerance, different or forged, and why.

    Exit status: 1 where a run is different or forged, 3 where one could not be verified.
    """
    from pruneaudit.campaign.verification import WRONG
    from pruneaudit.campaign.verification import verify as verify_runs
    from pruneaudit.catalog.discovery import Catalog
    from pruneaudit.method.outside import describing
    from pruneaudit.plugin.device import visible_gpus
    from pruneaudit.training.runtime import Runtime
    from pruneaudit.workloads.data import data_root as root_of

    if bool(runs) == every:
        raise ConfigError("name the runs to verify, or give --all")
    store = _existing_ledger(ledger)
    catalog = Catalog(
        extra_methods=tuple(audit_method or ()),
        extra_workloads=tuple(audit_workload or ()),
        isolate="foreign",
        outside=describing(store.root, None, data_root),
    )
    where = ("cuda" if visible_gpus() else "cpu") if device == "auto" else device
    runtime = Runtime(where, root_of(data_root), base=base)
    words = []
    for found in verify_runs(store, catalog, runtime, runs or (), tolerance, not weights):
        words.append(found.word)
        if as_json:
            typer.echo(json.dumps({"run": found.run, "verdict": found.word, "why": found.why}))
        else:
            typer.echo(f"{found.word}: {found.run}" + (f": {found.why}" if found.why else ""))
    if every:
        for line in store.account().lines():
            typer.echo(f"ledger: {line}", err=as_json)
    if any(word in WRONG for word in words):
        raise typer.Exit(1)
    if "not verified" in words:
        raise typer.Exit(3)


@app.command("run")
def run_assignment(
    assignment: Annotated[Path, typer.Argument(metavar="FILE", help="What a session of --audit-executor wrote.")],
) -> None:
    """Compute one run of a ledger, as a task of a cluster does; one that was begun goes on where it was.

    Exit status: 1 where the run failed, which the ledger notes; 3 where it could not be tried: what it stands on is
    missing, or the ledger cannot be written.
    """
    from pruneaudit.campaign.executors.assignment import Assignment, NotReadyError
    from pruneaudit.errors import RunFailedError, StoppedError

    try:
        record = Assignment.read(assignment).perform()
    except (RunFailedError, NotReadyError, StoppedError) as error:
        typer.echo(f"pruneaudit: {error}", err=True)
        raise typer.Exit(1 if isinstance(error, RunFailedError) else 3) from None
    typer.echo(f"{record.folder}: {record.metric} {record.value:.2f}")


@app.command()
def report(
    ledger: LedgerPath = _LEDGER,
    to: Annotated[Path, typer.Option("--to", help="Folder of the report.")] = Path("reports/latest"),
    study: Annotated[str | None, typer.Option("--study", help="Study whose waivers count: a name or a file.")] = None,
    figures: Annotated[
        Literal["auto", "1", "2", "none"],
        typer.Option("--figures", help="One or two columns of a paper wide; auto: 2."),
    ] = "auto",
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of results.json, and stop.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Write it again as cells come in; no figures.")] = False,
    recheck: Annotated[
        float,
        typer.Option(
            "--recheck",
            min=0.0,
            metavar="SECONDS",
            envvar="PRUNEAUDIT_RECHECK",
            help="Evaluate stored weights again that nobody has evaluated since they were trained, for so long; the "
            "next report goes on. 0: not at all.",
        ),
    ] = 10.0,
    data_root: Annotated[str | None, typer.Option("--data-root", help="Folder of datasets.")] = None,
    audit_workload: WorkloadSpecs = None,
) -> None:
    """Judge everything a ledger holds and write the report; trains nothing."""
    if schema:
        from pruneaudit.report.schema import schema as of_results

        typer.echo(json.dumps(of_results(), indent=1))
        return
    from pruneaudit.audit.catalogue import get_rule
    from pruneaudit.catalog.discovery import Catalog, suite_command
    from pruneaudit.report.drawing import Drawing
    from pruneaudit.report.results import gather_ledger, no_collection
    from pruneaudit.report.terminal import summary
    from pruneaudit.report.writer import write

    own = tuple(audit_workload or ())
    catalog = Catalog(extra_workloads=own)
    chosen = catalog.study(study) if study else None
    for rule in chosen.waive if chosen is not None else ():
        get_rule(rule)
    if watch:
        from rich.console import Console

        from pruneaudit.report.watch import watch as keep_writing

        keep_writing(ledger, to, study, Console(), own)
        return
    store = _existing_ledger(ledger)
    # One report, then the process ends: looking for cyclic garbage, here and at exit, would be a fifth of the time.
    with no_collection(), Drawing(figures) as drawing:
        told: list[str] = []
        if recheck:
            store, told = _rechecked(ledger, catalog, recheck, data_root)
        results = gather_ledger(catalog, store, chosen, drawing.begin)
        if not results.cells:
            raise ConfigError(f"ledger {ledger} holds no cell yet; run '{suite_command()}' first")
        unknown = _unknown_workloads(catalog, results.cells)
        if unknown and len(unknown) == len({cell["workload"] for cell in results.cells}):
            raise ConfigError(f"ledger {ledger}: {_how_to_know(unknown)}")
        for line in summary(results):
            typer.echo(line)
        if unknown:
            typer.echo(_how_to_know(unknown))
        for problem in [*told, *store.damaged.values()]:
            typer.echo(problem)
        try:
            for path in write(results, to, drawing):
                typer.echo(f"wrote {path}")
        except OSError as error:
            raise ConfigError(f"report {to}: {error.strerror}; choose another folder with --to") from None
        gc.freeze()


def _unknown_workloads(catalog: Any, cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """Workloads of a ledger that nobody knows here."""
    return sorted({cell["workload"] for cell in cells} - set(catalog.workloads))


def _how_to_know(names: list[str]) -> str:
    """What to do about them."""
    many = "workloads are" if len(names) > 1 else "workload is"
    return f"its {many} not here: {', '.join(names)}; give the files with --audit-workload to have the cells judged"


@app.command()
def serve(
    ledger: LedgerPath = _LEDGER,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")] = 8420,
    host: Annotated[str, typer.Option(help="Address to bind to; other machines reach only others.")] = "127.0.0.1",
    audit_workload: WorkloadSpecs = None,
) -> None:
    """Show a ledger in a browser while it grows: progress, curves of running trainings, cells, the report."""
    from pruneaudit.report.serve import serve as run_server

    run_server(ledger, host, port, typer.echo, tuple(audit_workload or ()))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def plan(
    context: typer.Context,
    expression: Annotated[str, typer.Option("-k", metavar="EXPR", help="Selection, as pytest's -k.")] = "",
    workers: Annotated[int, typer.Option("-n", min=1, help="Workers to estimate for.")] = 1,
    probe: Annotated[bool, typer.Option(help="Estimate the duration; takes ten seconds on this machine.")] = True,
    price: Annotated[
        float | None,
        typer.Option("--price", metavar="PER_HOUR", help="Price of an hour of the machine, or of each GPU."),
    ] = None,
    decide: Annotated[
        int | None,
        typer.Option("--decide", metavar="N", help="Verdicts seed by seed, N seeds at most: how many are expected?"),
    ] = None,
    pilot: Annotated[
        Path | None,
        typer.Option("--pilot", metavar="LEDGER", help="Where means and spreads of --decide come from; default: ours."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a selection would train: cells, distinct runs, epochs, MACs, time and cost. Trains nothing.

    Takes every --audit-… option of the suite. Runs of a kind that the ledger holds are estimated from what they took,
    the others from a probe on random images.
    """
    from pruneaudit.audit.forecast import PILOT
    from pruneaudit.plugin.collection import collect

    if price is not None:
        from pruneaudit.campaign.plan import check_price

        check_price(price, probe)
    if pilot is not None and decide is None:
        raise ConfigError("--pilot tells how many seeds --decide N takes; give both")
    asked = [] if decide is None else ["--audit-decide", str(decide)]
    work, expected = collect(expression, [*asked, *context.args], pilot)
    from pruneaudit.campaign.plan import make_plan

    facts = make_plan(work, workers, probe, price)
    if expected:
        facts["decide"] = [
            {
                "workload": one.comparison.workload,
                "protocol": one.comparison.protocol,
                "ratio": one.comparison.ratio,
                "comparison": " vs ".join(one.comparison.methods),
                "pilot_seeds": one.pilot,
                "mean": one.mean,
                "std": one.std,
                "expected_seeds": one.seeds,
                "decided": one.decided,
            }
            for one in expected
        ]
    if as_json:
        typer.echo(json.dumps(facts, indent=1, sort_keys=True))
        return
    columns = ["workload", "stage", "runs", "stored", "epochs", "training_macs", "minutes", "basis"]
    if facts["stages"] or "populations" not in facts:
        _show(facts["stages"], columns, False)
    typer.echo(
        f"{facts['cells']} cells stand on {facts['runs']} distinct runs ({facts['stored']} of them in the ledger); "
        f"to train: {facts['epochs']:.0f} epochs, {facts['training_macs']:.3g} training MACs"
    )
    for reason, count in facts.get("unplanned", {}).items():
        typer.echo(f"{count} cell(s) cannot be planned: {reason}")
    if facts["minutes"] is not None:
        idle = f" ({facts['idle_minutes']:.1f} if it did nothing else)" if facts["busy"] > 1.1 else ""
        typer.echo(
            f"estimated time: {facts['minutes']:.1f} minutes with {facts['workers']} worker(s) "
            f"on this machine as busy as it is now{idle}, "
            f"{facts['work_minutes']:.1f} minutes of work, one run at a time for each; the report comes on top"
        )
        price_of = "" if facts["cost"] is None else f", {facts['cost']:.2f} at {price:g} an hour"
        typer.echo(f"device hours: {facts['device_hours']:.2f}{price_of}")
    if panels := facts.get("populations"):
        _show(panels, ["study", "panel", "networks", "stored", "epochs"], False)
        networks, stored, epochs = (sum(row[name] for row in panels) for name in ("networks", "stored", "epochs"))
        typer.echo(
            f"populations: {networks} trainings of pruned networks ({stored} of them in the ledger), {epochs} epochs "
            "of single networks to train, many at once; no part of the time above"
        )
    if "decide" in facts:
        _show(facts["decide"], list(facts["decide"][0]), False)
        unknown = sum(row["decided"] is None for row in facts["decide"])
        typer.echo(
            "seeds until each comparison is decided, expected from the pilot's; the time above is for so many"
            + (f" ({unknown} without a pilot of {PILOT} paired seeds: counted with a guess)" * bool(unknown))
        )
    for workload, needs in facts.get("memory", {}).items():
        for stage, needed in needs.items():
            parts = " + ".join(f"{name} {needed[name]:.2f}" for name in needed if name != "total")
            typer.echo(f"{workload}: {stage} needs {needed['total']:.2f} GiB of a GPU's memory at most: {parts}")
    for workload, refused in facts.get("kept_whole", {}).items():
        for layer, why in refused.items():
            typer.echo(f"{workload}: layer '{layer}' keeps its filters: {why}")


@app.command()
def backends(
    workload: Annotated[str, typer.Argument(metavar="WORKLOAD", help="Such as resnet20-digits.")],
    models: Annotated[int, typer.Option(min=1, help="Runs of one shape that train together.")] = 8,
    ratio: Annotated[float | None, typer.Option(help="Pruning ratio of the network; default: the dense one.")] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Device; auto: cuda if there is one.")
    ] = "auto",
    precision: Annotated[Literal["fp32", "bf16", "fp64", "pure-bf16"], typer.Option(help="Arithmetic.")] = "fp32",
    audit_workload: WorkloadSpecs = None,
    as_json: Json = False,
) -> None:
    """Measure which --audit-backend trains a workload fastest on this machine, on random images."""
    from pruneaudit.campaign.backends import measure
    from pruneaudit.catalog.discovery import Catalog
    from pruneaudit.plugin.device import visible_gpus

    job = Catalog(extra_workloads=tuple(audit_workload or ())).workload(workload)
    if ratio is not None and not 0 < ratio < 1:
        raise ConfigError(f"--ratio {ratio:g}: expected a number between 0 and 1")
    if device == "cuda" and not visible_gpus():
        raise ConfigError("--device cuda: no CUDA device is visible here; leave it out or give cpu")
    where = ("cuda" if visible_gpus() else "cpu") if device == "auto" else device
    found = measure(job, where, precision, models, ratio)
    plain = found[0].seconds
    rows = [
        {
            "backend": one.backend,
            "seconds_per_epoch": one.seconds,
            "speed": plain / one.seconds if plain and one.seconds else None,
            "note": one.note,
        }
        for one in found
    ]
    _show(rows, ["backend", "seconds_per_epoch", "speed", "note"], as_json)
    best = min((one for one in found if one.seconds is not None), key=lambda one: one.seconds or 0.0)
    if not as_json:
        typer.echo(f"fastest here, steps of {models} runs of {workload}: --audit-backend {best.backend}")


@app.command()
def merge(
    ledgers: Annotated[
        list[str],
        typer.Argument(
            metavar="A B…", help="Ledgers, or what `push` filled (s3://…); without --to the first takes in all."
        ),
    ],
    to: Annotated[Path | None, typer.Option("--to", help="Ledger that takes in all, made where it is missing.")] = None,
) -> None:
    """Make one ledger of several, such as those of several machines. Ledgers that contradict each other are refused."""
    from pruneaudit.ledger import merging
    from pruneaudit.ledger.objects import Store, is_store

    if to is None and is_store(ledgers[0]):
        raise ConfigError(f"nothing can be merged into {ledgers[0]}: `pruneaudit push LEDGER {ledgers[0]}` adds to it")
    target, sources = (Path(ledgers[0]), ledgers[1:]) if to is None else (to, ledgers)
    if not sources:
        raise ConfigError(f"nothing to merge into {target}; name a second ledger, or a new one with --to")
    if to is None:
        # A mistyped first ledger must not become a new one.
        _existing_ledger(target)
    with tempfile.TemporaryDirectory() as folder:
        found: list[Path] = []
        for number, source in enumerate(sources):
            is_folder = not is_store(source)
            found += [Path(source)] if is_folder else Store(source).fetch(Path(folder) / str(number), target)
        merged = merging.merge(target, found)
    typer.echo(f"added to {target}: {merged.runs} run(s), {merged.failures} failure(s), {merged.cells} cell(s)")


@app.command()
def push(
    ledger: Annotated[Path, typer.Argument(metavar="LEDGER", help="Ledger whose finished runs are added.")],
    to: Annotated[
        str, typer.Argument(metavar="URL", help="Object storage that fsspec knows, such as s3://bucket/name.")
    ],
) -> None:
    """Add what a ledger holds to object storage, for hosts that see no common folder; `merge` takes it from there."""
    from pruneaudit.ledger.objects import Store, is_store

    if not is_store(to):
        raise ConfigError(f"'{to}' is no URL of object storage, such as s3://bucket/name; `merge` makes folders")
    pushed = Store(to).push(_existing_ledger(ledger))
    typer.echo(f"added to {to}: {pushed.runs} run(s), {pushed.others} other record(s), {pushed.size / 2**20:.1f} MiB")


@app.command()
def compare(
    ours: Annotated[Path, typer.Argument(metavar="REPORT", help="Folder of a report, such as reports/latest.")],
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="Folder of the one to compare with.")],
) -> None:
    """Compare a report's results with a reference's: equal, or what differs, and what explains it.

    Status 1 where results differ that nothing explains, or are not there.
    """
    from pruneaudit.report.comparing import compare as compare_reports

    found = compare_reports(ours, reference)
    for line in found.lines:
        typer.echo(line)
    raise typer.Exit(int(found.is_fault))


@app.command()
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as my-pruner.")],
    to: Annotated[Path, typer.Option("--to", help="Folder of the files.")] = Path("."),
) -> None:
    """Write a first working method and its test, to be edited."""
    from pruneaudit.catalog.discovery import suite_command
    from pruneaudit.method import scaffold

    identity, method, test = scaffold.new_method(name, to)
    typer.echo(f"wrote {method}")
    typer.echo(f"wrote {test}")
    typer.echo(f"next: {shlex.join(['pytest', str(test)])}")
    typer.echo(f'then: {suite_command()} --audit-method {shlex.quote(str(method))} -k "resnet20-digits and {identity}"')


@app.command()
def new_workload(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as my-arena.")],
    to: Annotated[Path, typer.Option("--to", help="Folder of the files.")] = Path("."),
) -> None:
    """Write a first working workload with its network, data and test, to be edited."""
    from pruneaudit.campaign import scaffold
    from pruneaudit.catalog.discovery import suite_command

    identity, files = scaffold.new_workload(name, to)
    for path in files:
        typer.echo(f"wrote {path}")
    typer.echo(f"next: {shlex.join(['pytest', str(files[-1])])}")
    typer.echo(f'then: {suite_command()} --audit-workload {shlex.quote(str(files[0]))} -k "{identity} and s3.2"')


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def crossvalidate(
    context: typer.Context,
    first: Annotated[str, typer.Argument(metavar="A", help="A method, or its file.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
) -> None:
    """Run A and B under each other's published retraining recipe: the four arms that rule F701 judges.

    Takes every option of pytest and of the suite, such as -k and -n. Add --audit-protocols to run other setups as well.
    """
    arithmetic = [part for word in context.args for part in _option_and_value(word, "--audit-arithmetic")]
    if "--audit-arithmetic" in arithmetic and "portable" in arithmetic:
        from pruneaudit.arithmetic import pin

        # Before the catalogue loads NumPy.
        pin()
    import pytest

    from pruneaudit.catalog.discovery import Catalog, method_source, suite_arguments
    from pruneaudit.catalog.names import CROSS_PREFIX

    specs = list(filter(_is_spec, (first, second)))
    known = Catalog(extra_methods=tuple(specs))
    names = [known.method(method_source(name).name if _is_spec(name) else name).name for name in (first, second)]
    if names[0] == names[1]:
        raise ConfigError(f"crossvalidate needs two methods, not '{names[0]}' twice")
    protocols = [f"{CROSS_PREFIX}{name}" for name in names]
    rest = [part for word in context.args for part in _option_and_value(word, "--audit-protocols")]
    if "--audit-protocols" in rest:
        place = rest.index("--audit-protocols")
        protocols += rest[place + 1].split(",") if place + 1 < len(rest) else []
        del rest[place : place + 2]
    arguments = ["--audit-methods", ",".join(names)]
    for spec in specs:
        arguments += ["--audit-method", spec]
    raise typer.Exit(pytest.main([*suite_arguments(), *arguments, "--audit-protocols", ",".join(protocols), *rest]))


def _option_and_value(word: str, option: str) -> list[str]:
    """``--option=value`` as two words; any other word as it is."""
    return [option, word.removeprefix(f"{option}=")] if word.startswith(f"{option}=") else [word]


def _is_spec(text: str) -> bool:
    """Whether a method is given by file or module, not by name."""
    return ".py" in text or ":" in text or "(" in text


def _rechecked(path: Path, catalog: Any, seconds: float, data_root: str | None) -> tuple[Any, list[str]]:
    """A ledger whose stored weights were evaluated again for so long, and what must be told of it."""
    from pruneaudit.campaign.rechecking import recheck
    from pruneaudit.ledger.store import Ledger
    from pruneaudit.plugin.device import visible_gpus

    store = Ledger(path, when_needed=True)
    store.recall(cells=False)
    runs = []
    for run_id in sorted(store.finished()):
        # Whoever stands on a record that cannot be read says so.
        with suppress(DamagedError):
            # What is pruned, and not retrained, is nobody's result.
            runs += [run] if (run := store.get(run_id)).stage != "prune" else []
    found = recheck(store, catalog, runs, seconds, "cuda" if visible_gpus() else "cpu", data_root)
    return store, found.lines()


def _existing_ledger(path: Path) -> Any:
    from pruneaudit.ledger.store import Ledger

    return Ledger(path, writable=False)


def _show(rows: list[dict[str, Any]], columns: Iterable[str], as_json: bool) -> None:
    """Print rows as JSON, or the chosen columns as a table (one block for a single row)."""
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    columns = list(columns)
    # Not above: commands that print no table start sooner without it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        # Piped output is for other programs: never fold a row to the width of a terminal that is not there.
        console = Console(width=1000)
    if len(rows) == 1:
        for column in columns:
            console.print(Text(f"{column}: {_cell(rows[0].get(column))}"))
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column))) for column in columns))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return str(value)
