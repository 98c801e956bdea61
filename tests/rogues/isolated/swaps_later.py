"""L1 with a thread that swaps weights once the decision is made."""

import sys
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from trained_by_hand import better

from pruneaudit import FilterScore


class SwapsLater(FilterScore):
    """L1 norm, and a thread that waits."""

    def score(self, layer, task):
        """The norm of a filter."""
        return layer.weight.flatten(1).abs().sum(1)

    def prune(self, task):
        """Decide, and leave somebody behind."""
        kept, found = super().prune(task), better(task)

        def swap():
            for _ in range(200):
                task.model.load_state_dict(found)
                time.sleep(0.001)

        threading.Thread(target=swap, daemon=True).start()
        return kept
