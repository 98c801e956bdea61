"""What a method is, what it works with, and how it is watched."""
