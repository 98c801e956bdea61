"""From cells to finished runs."""
