"""Rogues: what each rule of the audit must catch. ``records`` holds changed records, the other files methods."""
