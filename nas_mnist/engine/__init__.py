"""Networks trained on a CPU by kernels of our own, written and compiled on the spot."""
