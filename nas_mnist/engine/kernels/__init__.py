"""The kernels: loops over feature maps, written as LLVM and compiled when they are first used."""
