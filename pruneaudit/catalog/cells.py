"""Names of what is measured and judged: cells, and comparisons between two arms. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from pruneaudit.catalog.discovery import Catalog, MethodSource
from pruneaudit.catalog.names import CONTROLS, FOUND_BY, SCRATCH_PREFIX, UNPRUNED, is_scratch, ratio_text
from pruneaudit.catalog.protocols import Protocol
from pruneaudit.workloads.schema import Workload

#: Methods up to which all pairs are compared. Of more each is compared with the controls: among hundreds of pairs no
#: difference would survive the correction of its p value.
ALL_PAIRS = 12


@dataclass(frozen=True, order=True)
class Cell:
    """One measurement: workload × protocol × method × ratio × seed."""

    workload: str
    protocol: str
    method: str
    ratio: float
    seed: int

    @property
    def id(self) -> str:
        """Readable id, such as ``resnet56-digits-tpp-s3.2-r0.5-seed0``."""
        return f"{self.workload}-{self.method}-{self.protocol}-{ratio_text(self.ratio)}-seed{self.seed}"


@dataclass(frozen=True)
class Resolved:
    """A cell with what its names stand for: looked up once, and passed on instead of names.

    Attributes:
        cell: The cell.
        workload: Its workload, at full length.
        protocol: Its protocol.
        method: Where its method is defined.
    """

    cell: Cell
    workload: Workload
    protocol: Protocol
    method: MethodSource

    @classmethod
    def of(cls, cell: Cell, catalog: Catalog) -> Resolved:
        """Look a cell's names up.

        Raises:
            ConfigError: A name is unknown; the message names the nearest.
        """
        return cls(cell, catalog.workload(cell.workload), catalog.protocol(cell.protocol), catalog.method(cell.method))


@dataclass(frozen=True, order=True)
class Arm:
    """One method under one protocol at one ratio, over seeds."""

    workload: str
    protocol: str
    method: str
    ratio: float
    seeds: tuple[int, ...]

    @property
    def id(self) -> str:
        """Readable id, such as ``resnet56-digits-l1-s3.2-r0.5``."""
        return f"{self.workload}-{self.method}-{self.protocol}-{ratio_text(self.ratio)}"

    @property
    def methods(self) -> tuple[str, ...]:
        """Its method."""
        return (self.method,)

    def cells(self) -> list[Cell]:
        """Its cells, by seed."""
        return [Cell(self.workload, self.protocol, self.method, self.ratio, seed) for seed in self.seeds]


@dataclass(frozen=True, order=True)
class Comparison:
    """Two arms under one protocol at one ratio, over paired seeds."""

    workload: str
    protocol: str
    left: str
    right: str
    ratio: float
    seeds: tuple[int, ...]

    @property
    def id(self) -> str:
        """Readable id, such as ``resnet56-digits-l1-vs-tpp-s3.2-r0.5``."""
        return f"{self.workload}-{self.left}-vs-{self.right}-{self.protocol}-{ratio_text(self.ratio)}"

    @property
    def methods(self) -> tuple[str, str]:
        """Its two methods."""
        return (self.left, self.right)

    @property
    def arms(self) -> tuple[Arm, Arm]:
        """Its two arms."""
        left, right = (Arm(self.workload, self.protocol, name, self.ratio, self.seeds) for name in self.methods)
        return left, right

    def cells(self) -> list[Cell]:
        """The cells of both arms."""
        return [cell for arm in self.arms for cell in arm.cells()]


@dataclass(frozen=True)
class Selection:
    """What the options of a session select, before ``-k``.

    Attributes:
        catalog: What exists.
        methods: Chosen methods.
        protocols: Chosen protocols.
        seeds: Number of seeds, or None for each workload's own list.
        workloads: Chosen workloads; None: all.
        against: Rivals: only comparisons of other methods with these are judged. Empty: all pairs.
        ratios: Ratios beside those of each workload.
    """

    catalog: Catalog
    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    seeds: int | None = None
    workloads: tuple[str, ...] | None = None
    against: tuple[str, ...] = ()
    ratios: tuple[float, ...] = ()

    def on(self, workloads: Sequence[str]) -> Selection:
        """The same on some of its workloads, or on none."""
        return replace(self, workloads=tuple(workloads))

    def chosen(self) -> list[Workload]:
        """The workloads."""
        names = tuple(self.catalog.workloads) if self.workloads is None else self.workloads
        return [self.catalog.workload(name) for name in names]

    def seeds_of(self, workload: Workload) -> tuple[int, ...]:
        """Seeds of a workload: its own list, or the first N natural numbers."""
        return workload.seeds if self.seeds is None else tuple(range(self.seeds))

    def ratios_of(self, workload: Workload) -> tuple[float, ...]:
        """Ratios of a workload: its own, and those that were added."""
        return tuple(dict.fromkeys([*workload.ratios, *self.ratios]))

    def cells(self) -> list[Cell]:
        """All cells, in an order that keeps workers busy.

        Scratch arms at high ratios and strict protocols come first: they are the longest runs and wait for no other.
        Neighbours differ in seed, so that workers starting side by side need different runs.
        """
        return [
            Cell(workload.name, protocol, method, ratio, seed)
            for workload in self.chosen()
            for scratch_first in (True, False)
            for ratio in sorted(self.ratios_of(workload), reverse=True)
            for protocol in reversed(self.protocols)
            for method in self.methods
            if is_scratch(method) == scratch_first
            for seed in self.seeds_of(workload)
        ]

    def comparisons(self) -> list[Comparison]:
        """All pairs that the protocols judge."""
        return [
            Comparison(workload.name, protocol.name, left, right, ratio, self.seeds_of(workload))
            for workload in self.chosen()
            for protocol in map(self.catalog.protocol, self.protocols)
            for ratio in self.ratios_of(workload)
            for left, right in pairs(protocol, self.methods, self.against)
        ]

    def arms(self) -> list[Arm]:
        """All arms."""
        return [
            Arm(workload.name, protocol, method, ratio, self.seeds_of(workload))
            for workload in self.chosen()
            for protocol in self.protocols
            for ratio in self.ratios_of(workload)
            for method in self.methods
        ]


def pairs(protocol: Protocol, methods: Iterable[str], against: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Pairs of arms that a protocol judges; with rivals, each other method (first) with each rival (second).

    Between pruning methods: all pairs, or of many methods those with a control. Against scratch: each pruning method
    with the arm whose budget the protocol sets (with the one of exactly its architecture, ``scratch-of-METHOD``, where
    that was chosen); scratch-e and scratch-b keep Liu et al.'s budgets and stand beside them as references.
    """
    pruning = [method for method in methods if not is_scratch(method) and method != UNPRUNED]
    if against:
        rivals = [name for name in against if name in ([SCRATCH_PREFIX] if protocol.compare == "scratch" else pruning)]
        return [(name, rival) for name in pruning if name not in against for rival in rivals]
    if protocol.compare == "pruning":
        every = list(combinations(pruning, 2))
        with_control = [pair for pair in every if set(pair) & set(CONTROLS)]
        return with_control if len(pruning) > ALL_PAIRS and with_control else every
    listed = list(methods)
    rivals_of = {method: [f"{SCRATCH_PREFIX}{FOUND_BY}{method}", SCRATCH_PREFIX] for method in pruning}
    return [
        (method, next(name for name in rivals if name in listed))
        for method, rivals in rivals_of.items()
        if set(rivals) & set(listed)
    ]
