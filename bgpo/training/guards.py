"""Guard rails of a reinforcement step: what is wrong with an update, and whether the policy has collapsed.

`CollapseWatch` counts steps in a row. The count is not part of a checkpoint: a resumed run counts from 0, which can
delay a warning and changes nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

from bgpo.errors import ZeroGradientError
from bgpo.training.step_metrics import Update

COLLAPSE_STEPS = 5
"""Steps in a row before a collapse is reported."""
COLLAPSE_ENTROPY = 0.01
"""Nats a token: the policy says nearly always the same."""


def check_gradient(update: Update) -> None:
    """Raise ZeroGradientError when the gradient is exactly zero although responses with signal went into it.

    A response all of whose samples a clamp or clip cut off has rightly no gradient.
    """
    if update.norm == 0 and any(record.clamped < 1 for record in update.records):
        rows = sorted({record.row for record in update.records})
        raise ZeroGradientError(
            "the gradient is exactly zero although the rewards differ: the loss does not reach the trained parameters "
            f"(training rows {rows})",
            "method",
        )


class CollapseWatch:
    """Notices that rewards or entropy have collapsed; says so once, until it is over."""

    def __init__(self) -> None:
        self._steps = {"reward": 0, "entropy": 0}

    def observe(self, metrics: Mapping[str, float]) -> list[str]:
        """Take in a step's metrics; messages for what has just lasted COLLAPSE_STEPS steps."""
        collapsed = {
            # Without any reward errors are the reason, which have words of their own.
            "reward": metrics["frac_zero_signal_groups"] == 1 and "reward_mean" in metrics,
            "entropy": metrics["entropy"] < COLLAPSE_ENTROPY,
        }
        messages = {
            "reward": f"no group had rewards that differ in the last {COLLAPSE_STEPS} steps, nothing is learned: is "
            f"the task too hard, too easy, or the grader constant? (reward_mean {metrics.get('reward_mean', 0):.4g})",
            "entropy": f"the policy's entropy was below {COLLAPSE_ENTROPY} nats a token in the last {COLLAPSE_STEPS} "
            "steps: its responses hardly vary any more; lower the learning rate or raise the temperature",
        }
        self._steps = {name: self._steps[name] + 1 if now else 0 for name, now in collapsed.items()}
        return [messages[name] for name, steps in self._steps.items() if steps == COLLAPSE_STEPS]
