"""How a stage trains, and how what it consumes is metered."""
