"""Who computes a network: our own kernels for CPU and CUDA, or torch's modules (`backend`)."""
