"""The parts of `python -m benchmarks.api_load`; that module says what is measured."""
