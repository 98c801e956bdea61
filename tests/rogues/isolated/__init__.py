"""Methods that reach for the referee, or for better weights, and honest ones with odd habits, each in its process."""
