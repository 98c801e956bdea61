"""Figures in processes of their own: they are drawn while the rest of a report is judged and written."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType

from pruneaudit.report.results import Results
from pruneaudit.report.style import Style, styles

#: Processes at a time; each takes some 200 MB.
MOST_PROCESSES = 8


class Drawing:
    """The figures of one report, a workload at a time; leaving the context ends the processes.

    Processes are started afresh (``spawn``): a session has threads, and a fork would copy their locks.

    Args:
        choice: ``1`` or ``2`` columns of a paper wide; ``auto``: 2; ``none``: no figures and no processes.
    """

    def __init__(self, choice: str = "auto") -> None:
        self._columns = 2 if choice in ("auto", "none") else int(choice)
        self._pool = None if choice == "none" else _pool()
        self._drawn: list[Future[dict[str, bytes]]] = []
        self._begun = False

    def __enter__(self) -> Drawing:
        if self._pool is not None:
            # Importing matplotlib takes as long as reading thousands of cells: both at once.
            self._pool.submit(_import)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def begin(self, results: Results) -> None:
        """Begin as soon as there is what figures show; a second call does nothing.

        Args:
            results: Their cells, runs, curves and findings of ``RISING``; nothing else is looked at.
        """
        if self._begun or self._pool is None:
            return
        self._begun = True
        # The same looks as on the page: the methods of all workloads decide.
        looks = styles(row["method"] for row in results.cells)
        for workload, labels in sorted({(row["workload"], tuple(row["labels"])) for row in results.cells}):
            try:
                self._drawn.append(self._pool.submit(_draw, results.drawn(workload, labels), looks, self._columns))
            except RuntimeError as error:  # A process has ended, and the pool takes nothing more.
                self._drawn.append(Future())
                self._drawn[-1].set_exception(error)

    def conclude(self, results: Results) -> None:
        """Draw what only the whole report knows: differences with their verdicts. After ``begin``."""
        if self._pool is None:
            return
        for workload, labels in results.groups:
            judged = Results(cells=[], findings=[], verdicts=results.of("verdicts", workload, labels))
            judged.metrics = results.metrics
            if judged.verdicts:
                try:
                    self._drawn.append(self._pool.submit(_draw_differences, judged, workload, labels, self._columns))
                except RuntimeError as error:  # A process has ended, and the pool takes nothing more.
                    self._drawn.append(Future())
                    self._drawn[-1].set_exception(error)

    def images(self) -> Iterator[dict[str, bytes]]:
        """SVG and PDF of each workload by file name, when they are there.

        Warns once, in one line, where some cannot be drawn: a report is whole without them.
        """
        failed: list[str] = []
        for future in self._drawn:
            try:
                images = future.result()
            except Exception as error:  # Whatever goes wrong in there costs figures, no report.
                failed.append(" ".join(f"{type(error).__name__}: {error}".split()))
                continue
            yield images
        if failed:
            text = f"figures of {len(failed)} of {len(self._drawn)} workloads are missing: {failed[0]}"
            # With a place of ours, or Python would print a line of this file below it.
            warnings.warn_explicit(f"{text}; the rest of the report is whole", RuntimeWarning, "pruneaudit report", 0)


def _pool() -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(min(os.cpu_count() or 1, MOST_PROCESSES), spawn, initializer=_start)


def _start() -> None:
    """Ends with the process that reports, however that ends: it is the one who hears Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The report waits for the end of this process: no search for cyclic garbage then.
    atexit.register(gc.freeze)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _import() -> None:
    import pruneaudit.report.figures  # noqa: F401  (matplotlib takes a second)


def _draw(results: Results, looks: Mapping[str, Style], columns: int) -> dict[str, bytes]:
    from pruneaudit.report.figures import figures

    return figures(results, columns, looks)


def _draw_differences(results: Results, workload: str, labels: tuple[str, ...], columns: int) -> dict[str, bytes]:
    from pruneaudit.report.figures import differences
    from pruneaudit.report.sheet import written

    return written(differences(results, workload, labels), columns)
