"""What metrics say of graders, in the keys of OpenAI's `metrics` event: scores, errors, token usage, latency.

A list has an entry for the job's grader, and behind it one for each part of a `multi`, which is called by its key, as
in the metrics. Of evaluations it is the sampled answers that are told of, as `valid_*`. A mean runs over the responses,
a count is the sum over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_KINDS = (
    "other_error",
    "sample_parse_error",
    "invalid_variable_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
)
"""Kinds of error that are told of also when there is none; others only when they occurred."""


@dataclass(frozen=True)
class Graded:
    """A grader's specification and the metrics of a step or an evaluation."""

    grader: Mapping[str, Any]
    values: Mapping[str, float]
    which: str
    """What the names of metrics begin with: nothing, or `sampled_`."""
    prefix: str
    """What the keys begin with: `train` or `valid`."""

    def scores(self) -> list[dict[str, Any]]:
        """`scores.graders`."""
        key = f"{self.prefix}_reward_mean"
        whole, *parts = self._named()
        found = [whole | {key: self.values.get(f"{self.which}reward_mean")}]
        return found + [part | {key: self._value(f"reward/{part['name']}")} for part in parts]

    def errors(self) -> list[dict[str, Any]]:
        """`errors.graders`."""
        return [named | self._errors(named["name"]) for named in self._named()]

    def usage(self) -> list[dict[str, Any]]:
        """`usage.graders`: those that asked a judge."""
        specs = {self.grader.get("name"): self.grader} | dict(self.grader.get("graders") or {})
        found = []
        for named in self._named():
            counts = {side: self._value(f"grader_tokens/{named['name']}/{side}") for side in ("prompt", "completion")}
            if any(count is not None for count in counts.values()):
                entry = named | {"model": specs[named["name"]].get("model")}
                for side, count in counts.items():
                    entry |= self._mean_and_count(f"{side}_tokens", count or 0)
                found.append(entry)
        return found

    def timing(self) -> list[dict[str, Any]]:
        """`timing.graders`: those whose time was measured."""
        found = []
        for named in self._named():
            seconds = self.values.get(f"seconds_grader/{named['name']}")  # of an evaluation over all its answers
            if seconds is not None:
                found.append({"name": named["name"], f"{self.prefix}_execution_latency_mean": seconds})
        return found

    def tokens(self) -> dict[str, dict[str, float]]:
        """`model_graders_token_usage`: by model."""
        found: dict[str, dict[str, float]] = {}
        for rest, count in self._below("judge_tokens/"):
            model, _, side = rest.rpartition("/")
            found.setdefault(model, {})[f"{side}_tokens"] = count
        return {model: sides | {"total_tokens": sum(sides.values())} for model, sides in found.items()}

    def _named(self) -> list[dict[str, Any]]:
        parts = dict(self.grader.get("graders") or {})
        whole = {"name": self.grader.get("name"), "type": self.grader.get("type")}
        return [whole, *({"name": key, "type": part.get("type")} for key, part in parts.items())]

    def _errors(self, name: str) -> dict[str, float]:
        occurred = {kind: count for kind, count in self._below(f"grader_errors/{name}/") if "/" not in kind}
        counts = dict.fromkeys(_KINDS, 0.0) | occurred
        found: dict[str, float] = {}
        for kind, count in counts.items():
            found |= self._mean_and_count(kind, count)
        return found

    def _mean_and_count(self, what: str, count: float) -> dict[str, float]:
        responses = self._value("responses")
        means = {f"{self.prefix}_{what}_mean": count / responses} if responses else {}
        return means | {f"{self.prefix}_{what}_count": count}

    def _below(self, path: str) -> Iterator[tuple[str, float]]:
        """Metrics whose name begins with `path`, by the rest of the name."""
        path = self.which + path
        return ((name.removeprefix(path), value) for name, value in self.values.items() if name.startswith(path))

    def _value(self, name: str) -> float | None:
        return self.values.get(self.which + name)
