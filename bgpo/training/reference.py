"""The reference policy, from which a KL term or a preference loss measures the distance: the policy as it began.

With LoRA it is the policy itself with its adapters switched off and costs no memory; otherwise a frozen copy, loaded
from the checkpoint that the run started from (also after a resume), in the policy's own precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bgpo.models import Policy
from bgpo.spec import RunSpec
from bgpo.training.start import first_policy


class Reference:
    """Gives the reference policy for the length of a block."""

    def __init__(self, trained: Policy, frozen: Policy | None) -> None:
        self._trained, self._frozen = trained, frozen

    @classmethod
    def of(cls, policy: Policy, spec: RunSpec) -> Reference:
        """The reference of a run. Raises ModelError when the run's checkpoint cannot be loaded."""
        if spec.method.lora is not None:
            return cls(policy, None)
        dtype = next(policy.model.parameters()).dtype
        frozen = first_policy(spec, dtype, policy.device)
        frozen.model.requires_grad_(False)
        return cls(policy, frozen)

    @contextmanager
    def policy(self) -> Iterator[Policy]:
        """The reference policy. Gradients are the caller's to switch off."""
        if self._frozen is not None:
            yield self._frozen
        else:
            with self._trained.without_adapter():
                yield self._trained
