"""Who executes runs."""
