"""The models a serving process keeps in memory: the most recently used ones, within a number and a size."""

from __future__ import annotations

from collections import OrderedDict

import torch

from bgpo.errors import OutOfMemory
from bgpo.models import Policy, load_policy
from bgpo.serving.protocol import ServedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LoadedModels:
    """Loads what is asked for, and drops what was not used for longest."""

    def __init__(self, device: str, dtype: str, max_models: int, max_bytes: int | None) -> None:
        """
        Args:
            device: "auto" = the GPU if there is one.
            dtype: "auto" = bfloat16 on a GPU, else float32.
            max_models: how many stay loaded.
            max_bytes: of the weights of all together; the one in use may exceed it alone.
        """
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if dtype == "auto":
            dtype = "bfloat16" if self._device.startswith("cuda") else "float32"
        self._dtype = DTYPES[dtype]
        self._max_models, self._max_bytes = max_models, max_bytes
        self._loaded: OrderedDict[str, Policy] = OrderedDict()

    @property
    def keys(self) -> list[str]:
        """Those in memory, the last used one last."""
        return list(self._loaded)

    def get(self, model: ServedModel) -> Policy:
        """The policy of a model.

        Raises:
            ModelError: it cannot be loaded.
            OutOfMemory: it does not fit, even alone.
        """
        policy = self._loaded.get(model.key)
        if policy is None:
            self._drop_to(self._max_models - 1)
            policy = self._load(model)
            self._loaded[model.key] = policy
        self._loaded.move_to_end(model.key)
        while self._max_bytes is not None and len(self._loaded) > 1 and self._bytes() > self._max_bytes:
            self._drop_to(len(self._loaded) - 1)
        return policy

    def drop_others(self, key: str) -> None:
        """Keep this one only."""
        for other in [loaded for loaded in self._loaded if loaded != key]:
            del self._loaded[other]
        self._release()

    def _load(self, model: ServedModel) -> Policy:
        for last_try in (False, True):
            try:
                policy = load_policy(model.path, dtype=self._dtype, device=self._device, base=model.base)
                policy.model.requires_grad_(False)
                return policy
            except torch.OutOfMemoryError as error:
                if last_try or not self._loaded:
                    raise OutOfMemory(f"the model does not fit the memory of {self._device}: {error}") from error
            self._drop_to(0)
        raise AssertionError("unreachable")

    def _drop_to(self, count: int) -> None:
        if len(self._loaded) > count:
            while len(self._loaded) > count:
                self._loaded.popitem(last=False)
            self._release()

    def _release(self) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _bytes(self) -> int:
        policies = self._loaded.values()
        return sum(p.numel() * p.element_size() for policy in policies for p in policy.model.parameters())
