"""Data of a workload: known by name or brought by a user, in memory or streamed.

``loading`` leads from a data section to a ``Dataset`` of three splits. Its examples come from ``builtin`` or
``brought`` (``examples``, ``folders``), are split (``splits``), and lie in memory (``parts``) or are read while they
are used (``streamed``, ``store``); ``transforms`` acts on single images.
"""

from pruneaudit.state import DATA_VARIABLE, data_root
from pruneaudit.workloads.data.brought import Data
from pruneaudit.workloads.data.dataset import Dataset, Split, crops
from pruneaudit.workloads.data.facts import Facts
from pruneaudit.workloads.data.loading import facts, identity, imitation, load, look_in, stored_at
from pruneaudit.workloads.data.parts import Part
from pruneaudit.workloads.data.questions import Question, Questions, Request
from pruneaudit.workloads.data.shares import WHOLE, Share
from pruneaudit.workloads.data.streamed import Streamed, is_reading

__all__ = [
    "DATA_VARIABLE",
    "WHOLE",
    "Data",
    "Dataset",
    "Facts",
    "Part",
    "Question",
    "Questions",
    "Request",
    "Share",
    "Split",
    "Streamed",
    "crops",
    "data_root",
    "facts",
    "identity",
    "imitation",
    "is_reading",
    "load",
    "look_in",
    "stored_at",
]
