"""The kernels: loops over feature maps, written as LLVM and compiled when they are first used.

A kernel's docstring lists its arguments. "map" stands for the five arguments of a `MapPointer`, "chain" for
those of a `PointwiseChain`. On CUDA a pointer "per model" or "per block" is two arguments: a pointer, and the
bytes from one to the next. Numbers have the kernel's dtype, if not said otherwise.
"""
