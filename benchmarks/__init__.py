"""What docs/benchmarks.md reports, runnable."""
