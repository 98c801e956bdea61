"""What there is to run, and the names of what is measured."""
