"""What is measured of a network: cost and accuracy."""
