"""Networks on CUDA by kernels of our own, which share their source with those of a CPU."""
