"""Names that code knows: core methods, controls, scratch arms, and how ids are made. Imports nothing of the project."""

from __future__ import annotations

import re

#: What a run uses unless told otherwise: the controls, one trained method and the scratch arms.
CORE_METHODS = ("l1", "random", "tpp", "scratch", "scratch-e", "scratch-b")
#: ``xv-METHOD``: every arm retrains by the published recipe of METHOD (Wang et al. 2023, sec. 6).
CROSS_PREFIX = "xv-"
#: Methods that train the pruned shape from random weights; known by name so that selecting cells imports no method.
SCRATCH_PREFIX = "scratch"
#: ``scratch-of-METHOD``: a scratch arm that trains exactly the architecture that METHOD found.
FOUND_BY = "-of-"
#: Setup of stated runs that name none.
NO_SETUP = "stated"
#: The controls, by name for the same reason: the dense network with the same retraining, and what every method must be
#: compared with (Blalock et al. 2020, appendix B).
UNPRUNED = "unpruned"
RANDOM = "random"
MAGNITUDE = "l1"
#: Magnitude and chance, for filters (heads, neurons) and for single weights; for whole blocks chance alone.
CONTROLS_OF = {
    "filter": (MAGNITUDE, RANDOM),
    "weight": ("magnitude-layer", "random-weight"),
    "block": ("global-random-block",),
}
CONTROLS = tuple(name for names in CONTROLS_OF.values() for name in names)


#: ``p30f90-1e-2``: S3.2 with other lengths and rates, see :mod:`pruneaudit.catalog.courses`.
_COURSE = re.compile(r"p\d+f\d")


def is_derived(protocol: str) -> bool:
    """Whether a protocol is one of the setups with another recipe, made by name: ``xv-METHOD``, ``p30f90-1e-2``."""
    return protocol.startswith(CROSS_PREFIX) or is_course(protocol)


def is_course(protocol: str) -> bool:
    """Whether a protocol's name begins as a course's does."""
    return _COURSE.match(protocol) is not None


def is_scratch(method: str) -> bool:
    """Whether a method id names a scratch arm: ``scratch`` or ``scratch-…``."""
    return method == SCRATCH_PREFIX or method.startswith(f"{SCRATCH_PREFIX}-")


def finder(method: str) -> str | None:
    """METHOD of ``scratch-of-METHOD``, and so of every scratch arm; None: the name is another one."""
    arm, of, found_by = method.partition(FOUND_BY)
    return found_by if of and is_scratch(arm) else None


def method_id(stem: str) -> str:
    """Id from a file stem or class name: ``greg_1`` and ``Greg1`` style names become lower-case with hyphens."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", stem)
    return spaced.replace("_", "-").lower()


def ratio_text(ratio: float) -> str:
    """A ratio as it stands in ids: ``r0.5``."""
    return f"r{ratio:g}"
