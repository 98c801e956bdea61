"""The rules. Importing this package registers them."""

from pruneaudit.audit.rules import attribution, comparability, honesty, measurement

__all__ = ["attribution", "comparability", "honesty", "measurement"]
