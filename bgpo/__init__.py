"""BGPO: boundary-guided policy optimization for diffusion language models.

The public surface is small and stable: `load_policy`, `save_policy`, `generate`, `elbo_terms`, and the packages
`bgpo.objectives` and `bgpo.rewards`. Names resolve on first use, so that importing the torch-free parts
(`bgpo.spec`, `bgpo.rewards`, `bgpo.records`, `bgpo.tasks`) from the service never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "load_policy": "bgpo.models",
    "save_policy": "bgpo.models",
    "Policy": "bgpo.models",
    "generate": "bgpo.generation",
    "elbo_terms": "bgpo.scoring",
}
_MODULES = {"objectives", "rewards"}

__version__ = "0.1.0"
__all__ = ["Policy", "__version__", "elbo_terms", "generate", "load_policy", "objectives", "rewards", "save_policy"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    if name in _MODULES:
        return import_module(f"bgpo.{name}")
    raise AttributeError(f"module 'bgpo' has no attribute {name!r}")
