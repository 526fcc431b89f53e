"""The diffusion process: forward masking, ELBO terms, the rollout sampler, and the random bits they draw from."""
