"""The sizes the paper is repeated at. One preset fixes model, data, budget and seeds for every method alike.

`cpu`: the shipped 1M-parameter model, in under an hour on two slow cores. `h200`: a model of 85M parameters that our
own supervised method trains from scratch, larger batches, bfloat16. `smoke`: seconds, for the tests.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
SHIPPED = "examples/models/tiny-llada"

Task = Literal["sudoku", "countdown"]
TASKS: tuple[Task, ...] = ("sudoku", "countdown")

ROLLOUT = {"max_completion_length": 17, "block_length": 17, "diffusion_steps": 9, "temperature": 1.0}
"""A 4x4 grid or an expression, and the end token: what the shipped model was trained on."""


@dataclass(frozen=True)
class Scratch:
    """A base model made from nothing: random weights, then supervised training on noisy demonstrations."""

    shape: dict[str, Any]
    """Sizes, as `bgpo.models.scratch.create_checkpoint` names them."""
    steps: int
    batch_size: int
    learning_rate: float
    rows: int
    """Demonstrations of each task."""


@dataclass(frozen=True)
class GradientStudy:
    """Figure 3: on fixed responses, how a gradient estimate spreads around its limit."""

    prompts: int
    group_size: int
    n_t: tuple[int, ...]
    draws: int
    """Independent estimates of each kind."""
    gold_n_t: int
    gold_draws: int
    """The gold is the mean of so many estimates: several, so that its own noise is known."""
    drift_steps: int
    """Optimizer steps between the rollout policy and the policy, off-policy; 1 = the second of two mini-batches."""


@dataclass(frozen=True)
class Preset:
    """Everything the tables need, but the methods themselves (`plan`)."""

    name: str
    model: Scratch | None
    """None = the shipped model."""
    seeds: tuple[int, ...]
    steps: dict[Task, int]
    """Rollout batches; Countdown gets more, for its reward is rare."""
    prompts: int
    group_size: int
    micro_batch: int
    learning_rate: float
    n_t: int
    """Monte Carlo samples of bgpo and its ablations in tables 1 and 3."""
    n_t_grid: tuple[int, ...]
    """Table 2."""
    train_rows: int
    test_rows: int
    precision: Literal["float32", "bfloat16"]
    device: str
    memory_n_t: tuple[int, ...]
    gradients: GradientStudy
    warmup_steps: int = 3
    minibatches: int = 2
    """Optimizer steps of one rollout batch in the off-policy rows (the paper's 2)."""
    estimator: str = "bernoulli"
    """The paper's own masks, for every method that draws any."""
    rollout: dict[str, Any] = field(default_factory=lambda: dict(ROLLOUT))

    def model_settings(self) -> dict[str, Any]:
        """What names the base model in a job's key."""
        if self.model is None:
            digest = hashlib.sha256((ROOT / SHIPPED / "model.safetensors").read_bytes()).hexdigest()
            return {"path": SHIPPED, "sha256": digest}
        return {
            "shape": self.model.shape,
            "steps": self.model.steps,
            "batch_size": self.model.batch_size,
            "learning_rate": self.model.learning_rate,
            "rows": self.model.rows,
            "precision": self.precision,
        }


PRESETS = {
    "cpu": Preset(
        name="cpu",
        model=None,
        seeds=(0, 1, 2),
        steps={"sudoku": 16, "countdown": 24},
        prompts=8,
        group_size=8,
        micro_batch=64,
        learning_rate=1.5e-4,
        n_t=8,
        n_t_grid=(1, 2, 4, 8, 16),
        train_rows=4000,
        test_rows=256,
        precision="float32",
        device="cpu",
        memory_n_t=(1, 2, 4, 8, 16),
        gradients=GradientStudy(
            prompts=2, group_size=4, n_t=(1, 2, 4, 8, 16), draws=16, gold_n_t=64, gold_draws=16, drift_steps=1
        ),
    ),
    "h200": Preset(
        name="h200",
        model=Scratch(
            shape={"d_model": 768, "n_layers": 12, "n_heads": 12, "mlp_hidden_size": 2048, "max_sequence_length": 256},
            steps=1200,
            batch_size=512,
            learning_rate=5e-4,
            rows=24000,
        ),
        seeds=(0, 1, 2),
        steps={"sudoku": 40, "countdown": 80},
        prompts=32,
        group_size=16,
        micro_batch=2048,
        learning_rate=2e-5,
        n_t=16,
        n_t_grid=(1, 2, 4, 8, 16),
        train_rows=20000,
        test_rows=1024,
        precision="bfloat16",
        device="auto",
        memory_n_t=(1, 2, 4, 8, 16, 64),
        gradients=GradientStudy(
            prompts=8, group_size=8, n_t=(1, 2, 4, 8, 16), draws=32, gold_n_t=64, gold_draws=32, drift_steps=1
        ),
    ),
    "smoke": Preset(
        name="smoke",
        model=None,
        seeds=(0, 1),
        steps={"sudoku": 2, "countdown": 2},
        prompts=2,
        group_size=4,
        micro_batch=64,
        learning_rate=1.5e-4,
        n_t=2,
        n_t_grid=(1, 2),
        train_rows=16,
        test_rows=8,
        precision="float32",
        device="cpu",
        memory_n_t=(1, 2),
        gradients=GradientStudy(prompts=2, group_size=4, n_t=(1, 2), draws=3, gold_n_t=8, gold_draws=2, drift_steps=1),
    ),
}
