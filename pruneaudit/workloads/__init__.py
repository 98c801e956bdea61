"""Architectures and datasets."""
