"""Picks threads and GPU of an xdist worker before anything imports torch."""

from pruneaudit.plugin.device import claim

claim()

# Loaded already where pruneaudit is installed; the name is the entry point's, so it is never loaded twice.
pytest_plugins = ["pruneaudit.plugin"]
