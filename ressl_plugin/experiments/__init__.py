"""Many trainings: sweeps, method benchmarks, the paper's tables and their numbers."""
