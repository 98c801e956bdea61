"""How kernels of our own are written, compiled and kept; what they compute is said in the rooms that need them."""
