"""The benchmark: training speed, overheads, and comparisons of searches and of recipes."""
