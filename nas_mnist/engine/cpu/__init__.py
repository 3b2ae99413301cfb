"""Networks on a CPU by kernels of our own, compiled while the program runs."""
