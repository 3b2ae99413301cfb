"""Networks trained on CUDA by kernels of our own, written as those of a CPU are (`nas_mnist.engine`)."""
