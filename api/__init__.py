"""The HTTP service: OpenAI's fine-tuning API with extensions. Reads and writes through `jobs` only; no torch."""
