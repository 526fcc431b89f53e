"""`reward_model`: the one output of a sequence classifier from the operator's catalog, on the worker's device.

The grader makes conversations and judges what comes back; the network is behind `RewardModel`, since nothing here may
load PyTorch (`bgpo.models.reward_model` has it). Solved means the upper end of `range`, or 1 without one: outputs
without a range have no best value, so there it says little.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bgpo.errors import SpecError
from bgpo.rewards.grade import Grade, GradeFault, Grader, Sample, clipped, rendered
from bgpo.rewards.received import finite_number
from bgpo.rewards.settings import Resources
from bgpo.rewards.spec import Message, RewardModelSpec
from bgpo.rewards.templates import Template, parse_template

Conversation = list[dict[str, str]]


class RewardModelGrader(Grader):
    """Compiled `reward_model`.

    Raises:
        SpecError: the catalog has no such model, or there is no PyTorch here.
        ModelError: the model cannot be loaded.
    """

    def __init__(self, spec: RewardModelSpec, resources: Resources) -> None:
        self.name, self.type = spec.name, spec.type
        self._batch_size, self._range = spec.batch_size, spec.range
        self._sigmoid = spec.activation == "sigmoid"
        self._messages = None if spec.input is None else [_compiled(message) for message in spec.input]
        models = resources.settings.reward_models
        if spec.model not in models:
            known = f"it has {', '.join(sorted(models))}" if models else "it has none"
            raise SpecError(f"{spec.model!r} is no reward model of this service; {known}", "model")
        if resources.load_reward_model is None:
            raise SpecError("graders of type reward_model run on workers only", "type")
        self._model = resources.load_reward_model(models[spec.model])

    def _grade_all(self, samples: Sequence[Sample], items: Sequence[Mapping[str, Any]]) -> list[Grade]:
        pairs = list(zip(samples, items, strict=True))
        return [
            grade
            for begin in range(0, len(pairs), self._batch_size)
            for grade in self._grade_batch(pairs[begin : begin + self._batch_size])
        ]

    def _grade_batch(self, pairs: Sequence[tuple[Sample, Mapping[str, Any]]]) -> list[Grade]:
        begin = time.perf_counter()
        grades: dict[int, Grade] = {}
        conversations: dict[int, Conversation] = {}
        for index, pair in enumerate(pairs):
            try:
                conversations[index] = self._conversation(*pair)
            except GradeFault as fault:
                grades[index] = Grade(0.0, solved=False, error=fault.info)
        try:
            outputs = self._model.score(list(conversations.values()))
        except ValueError:  # one of them cannot be scored; which, scoring them one by one tells
            grades |= {index: self._alone(conversation) for index, conversation in conversations.items()}
        else:
            grades |= {index: self._scored(value) for index, value in zip(conversations, outputs, strict=True)}
        seconds = (time.perf_counter() - begin) / len(pairs)
        return [self._labelled(grades[index], seconds) for index in range(len(pairs))]

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        return self._grade_batch([(sample, item)])[0]

    def _alone(self, conversation: Conversation) -> Grade:
        try:
            (output,) = self._model.score([conversation])
        except ValueError as error:
            fault = GradeFault(f"the reward model cannot score this conversation: {error}")
            return Grade(0.0, solved=False, error=fault.info)
        return self._scored(output)

    def _scored(self, output: float) -> Grade:
        try:
            score = clipped(self._activated(finite_number(output)), self._range)
        except (ValueError, GradeFault):
            fault = GradeFault(f"the reward model's output is {output}: rewards are finite numbers")
            return Grade(0.0, solved=False, error=fault.info)
        return Grade(score, solved=score >= (1.0 if self._range is None else self._range[1]))

    def _activated(self, output: float) -> float:
        return 0.5 * (1 + math.tanh(output / 2)) if self._sigmoid else output

    def _conversation(self, sample: Sample, item: Mapping[str, Any]) -> Conversation:
        if self._messages is not None:
            return [
                {"role": role, "content": "\n".join(rendered(template, sample, item) for template in templates)}
                for role, templates in self._messages
            ]
        messages = item.get("messages")
        if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
            message = "item.messages is no list of messages with role and content; give input instead"
            raise GradeFault(message, "invalid_variable_error")
        asked = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
        given = [{"role": message["role"], "content": message["content"]} for message in asked]
        return [*given, {"role": "assistant", "content": sample.output_text}]


def _compiled(message: Message) -> tuple[str, list[Template]]:
    return message.role, [parse_template(text) for text in message.texts()]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))
