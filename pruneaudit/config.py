"""What method files annotate with, under the name that they import it by.

A method's bytes are part of the identity of its runs: a new name in its import would rename them all.
"""

from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import Workload

__all__ = ["Recipe", "Workload"]
