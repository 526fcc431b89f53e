"""The training loop and its parts: data order, rollouts, advantages, gradient accumulation, optimizer, checkpoints."""
