"""What the benchmark measures, and searches replayed on recorded learning curves."""
