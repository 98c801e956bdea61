"""Studies that measure more than cells: populations of pruned networks, what they claim, and their pages."""
