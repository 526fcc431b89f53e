"""The parts of `benchmarks.gpu_check`, each a process of its own; see there."""
