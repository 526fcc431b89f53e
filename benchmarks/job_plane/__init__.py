"""The parts of `python -m benchmarks.job_plane`; `__main__` says what is measured."""
