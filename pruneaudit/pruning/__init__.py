"""Which filters a method may remove, and how they are removed."""
