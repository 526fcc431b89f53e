"""Model families: native networks that load and save the published checkpoint layouts."""

from bgpo.models.policy import Policy, load_policy, save_policy

__all__ = ["Policy", "load_policy", "save_policy"]
