"""Answering requests with loaded models: what `python -m bgpo.serve` is made of. Only `protocol` is free of PyTorch."""
