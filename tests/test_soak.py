"""Seconds of the soak that ``make soak`` does for ten."""

from soak import FAULTS, Soak


def test_a_random_campaign_survives_whatever_is_done_to_it(tmp_path, capsys):
    soak = Soak(tmp_path, seconds=8, seed=1).run()
    counts = soak.counts()
    assert soak.rounds >= 1 and all(injected == survived for injected, survived in counts.values()), counts
    assert sum(injected for injected, _ in counts.values()) >= len(FAULTS) / 2
