"""The rules. Importing this package registers them."""

from pruneaudit.audit.rules import comparability

__all__ = ["comparability"]
