"""The pytest cases: conformance, cells, fairness. Run with ``pytest suite`` or ``pytest --pyargs pruneaudit.suite``."""
