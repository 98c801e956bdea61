"""One campaign of those that ``make soak`` makes for ten minutes."""

import math

from soak import FAULTS, Soak

from pruneaudit.ledger.store import Ledger


def test_a_random_campaign_survives_whatever_is_done_to_it(tmp_path, capsys):
    # Through all faults, however long that takes here.
    soak = Soak(tmp_path, seconds=math.inf, seed=1)
    Ledger(soak.root)
    soak.disturb(soak.runs(), math.inf)
    soak.settle(soak.runs())
    counts = soak.counts()
    assert all(injected == survived for injected, survived in counts.values()), counts
    assert sum(injected for injected, _ in counts.values()) >= len(FAULTS) / 2


def test_a_training_whose_state_is_damaged_begins_anew_and_ends_alike(tmp_path):
    """The one fault that needs a training under way: in a random campaign it may come when all is done."""
    soak = Soak(tmp_path, seconds=0, seed=2)
    Ledger(soak.root)
    soak._state_damaged("state damaged")
    soak.settle(soak.runs())
    assert soak.counts()["state damaged"] == (1, 1) and soak.injected["killed"] >= 1
