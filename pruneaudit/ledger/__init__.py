"""The store of what was measured."""
