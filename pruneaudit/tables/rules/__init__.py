"""The rules of tables, T001 to T024, by what they look at."""

from pruneaudit.tables.rules import accuracies, comparisons, evidence, sizes

__all__ = ["accuracies", "comparisons", "evidence", "sizes"]
