"""The `metrics` event of a step, in the words and keys OpenAI uses, with every value beside them.

Names of values are those of `bgpo.records`; one this module does not know still reaches the user under `train` or
`valid`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from jobs.services.graded import Graded

_TRAIN_WORDS = {
    "reward_mean": "train mean reward",
    "solved_rate": "train solved rate",
    "loss": "train loss",
    "accuracy": "train preference accuracy",
}
_VALID_WORDS = {
    "sampled_reward_mean": "full validation mean reward",
    "sampled_solved_rate": "full validation solved rate",
    "loss": "full validation loss",
}
_TRAIN_KEYS = {
    "reward_mean": "train_mean_reward",
    "loss": "train_loss",
    "token_accuracy": "train_mean_token_accuracy",
    "response_length": "completion_tokens_mean",
}
_VALID_KEYS = {
    "sampled_reward_mean": "full_valid_mean_reward",
    "loss": "full_valid_loss",
    "token_accuracy": "full_valid_mean_token_accuracy",
}
_TIMING = {
    "seconds_rollout": "sampling",
    "seconds_loss": "training",
    "seconds_step": "full_iteration",
    "seconds_evaluate": "eval",
}


def metrics_event(
    step: int,
    total_steps: int,
    split: Literal["train", "validation"],
    values: Mapping[str, float],
    grader: Mapping[str, Any] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Message and data of the event of one metric record; `grader` is the specification in the job's recipe."""
    train = split == "train"
    words, keys = (_TRAIN_WORDS, _TRAIN_KEYS) if train else (_VALID_WORDS, _VALID_KEYS)
    hidden = {"loss"} if "reward_mean" in values else set()  # of a policy gradient it tells people nothing
    shown = [f"{text}={values[name]:.2f}" for name, text in words.items() if name in values and name not in hidden]
    data: dict[str, Any] = {"step": step, "total_steps": total_steps}
    data |= {key: values[name] for name, key in keys.items() if name in values}
    data["timing"] = {"step": {key: values[name] for name, key in _TIMING.items() if name in values}}
    prefix = "train" if train else "valid"
    if grader is not None:
        seen = Graded(grader, values, "" if train else "sampled_", prefix)
        data["scores"] = {"graders": seen.scores(), f"{prefix}_reward_mean": values.get(f"{seen.which}reward_mean")}
        data["errors"] = {"graders": seen.errors()}
        data["usage"] = {"graders": seen.usage()}
        data["timing"]["graders"] = seen.timing()
        data["model_graders_token_usage"] = seen.tokens()
    data[prefix] = dict(values)
    return f"Step {step}/{total_steps} , {', '.join(shown)}".removesuffix(" , "), data


def checkpoint_metrics(step: int, values: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a checkpoint on the wire: OpenAI's names where there is one, and all values."""
    named = {
        "valid_reward_mean": values.get("sampled_reward_mean"),
        "full_valid_loss": values.get("loss"),
        "full_valid_mean_token_accuracy": values.get("token_accuracy"),
    }
    return {"step": step} | {key: value for key, value in named.items() if value is not None} | dict(values)
