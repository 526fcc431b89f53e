"""`reward_model`: conversations, activation, range, batches and faults, with a scorer that tells what it was given.

The network behind it is tested in tests/bgpo/models/test_reward_model.py; here one of random weights goes all the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen2Config

from bgpo.errors import SpecError
from bgpo.models.reward_model import load_reward_model
from bgpo.models.scratch import byte_tokenizer
from bgpo.rewards import Grader, GraderSettings, Resources, Sample, compile_grader

SPEC = {"type": "reward_model", "name": "preference", "model": "small"}
ITEM = {"messages": [{"role": "user", "content": "Hi"}]}


class LengthModel:
    """The answer's length, with the numbers it can write for faults."""

    def __init__(self) -> None:
        self.batches: list[list[list[dict[str, str]]]] = []

    def score(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[float]:
        self.batches.append([[dict(message) for message in conversation] for conversation in conversations])
        answers = [conversation[-1]["content"] for conversation in conversations]
        if "too long" in answers:
            raise ValueError("it has 9000 tokens")
        return [float(answer) if answer in ("nan", "inf", "-inf") else float(len(answer)) for answer in answers]


@pytest.fixture
def model() -> LengthModel:
    return LengthModel()


def grader(model: LengthModel, **spec: Any) -> Grader:
    settings = GraderSettings(reward_models={"small": "/models/small"})
    return compile_grader(SPEC | spec, Resources(settings=settings, load_reward_model=lambda directory: model))


def test_the_conversation_is_the_rows_messages_and_the_answer(model: LengthModel) -> None:
    item = {"messages": [{"role": "user", "content": "Hi", "weight": 1}, {"role": "assistant", "content": "reference"}]}
    grade = grader(model).grade(Sample("hello"), item)
    assert model.batches == [[[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "hello"}]]]
    assert (grade.score, grade.error, grade.sub_scores) == (5.0, None, {"preference": 5.0})


def test_or_what_input_says(model: LengthModel) -> None:
    messages = [
        {"role": "user", "content": ["{{ item.q }}", "?"]},
        {"role": "assistant", "content": "{{ sample.output_text }}"},
    ]
    grader(model, input=messages).grade(Sample("hello"), {"q": "Why"})
    assert model.batches == [[[{"role": "user", "content": "Why\n?"}, {"role": "assistant", "content": "hello"}]]]


def test_batches_and_order(model: LengthModel) -> None:
    grades = grader(model, batch_size=3).grade_all([Sample("x" * n) for n in range(7)], [ITEM] * 7)
    assert [grade.score for grade in grades] == list(range(7))
    assert [len(batch) for batch in model.batches] == [3, 3, 1]
    assert grader(model).grade_all([], []) == []


@pytest.mark.parametrize("length", [0, 1, 3, 2000])
def test_sigmoid(length: int, model: LengthModel) -> None:
    score = grader(model, activation="sigmoid").grade(Sample("x" * length), ITEM).score
    assert score == pytest.approx(1 / (1 + math.exp(-min(length, 700))))


def test_range(model: LengthModel) -> None:
    grades = grader(model, range=[1, 4]).grade_all([Sample("x" * n) for n in (0, 2, 4, 9)], [ITEM] * 4)
    assert [grade.score for grade in grades] == [1.0, 2.0, 4.0, 4.0]
    assert [grade.solved for grade in grades] == [False, False, True, True]


@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_one_that_cannot_be_scored_leaves_the_others(activation: str, model: LengthModel) -> None:
    outputs = ["abc", "too long", "nan", "inf", "-inf", "ok"]
    items: list[Any] = [ITEM] * len(outputs)
    one = grader(model, activation=activation)
    grades = one.grade_all([*map(Sample, outputs), Sample("no messages")], [*items, {"messages": "Hi"}])
    assert [grade.error is None for grade in grades] == [True, False, False, False, False, True, False]
    messages = [grade.error.message for grade in grades if grade.error is not None]
    assert "9000 tokens" in messages[0]
    assert all("finite" in message for message in messages[1:4])
    assert "item.messages" in messages[4]
    assert all(grade.score == 0 for grade in grades if grade.error is not None)


def test_a_model_that_is_not_in_the_catalog() -> None:
    settings = GraderSettings(reward_models={"b": "/b", "a": "/a"})
    with pytest.raises(SpecError, match="it has a, b") as error:
        compile_grader(SPEC, Resources(settings=settings))
    assert error.value.param == "model"
    with pytest.raises(SpecError, match="it has none"):
        compile_grader(SPEC)


def test_where_there_is_no_pytorch() -> None:
    with pytest.raises(SpecError, match="run on workers only"):
        compile_grader(SPEC, Resources(settings=GraderSettings(reward_models={"small": "/models/small"})))


def test_with_a_real_network(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("qwen3")
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=1,
        intermediate_size=16,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(str(tmp_path))
    settings = GraderSettings(reward_models={"small": str(tmp_path)})
    resources = Resources(settings=settings, load_reward_model=partial(load_reward_model, device="cpu"))
    outputs = ["short", "a longer answer than that"]
    grades = compile_grader(SPEC, resources).grade_all([Sample(output) for output in outputs], [ITEM] * 2)

    reference = AutoModelForSequenceClassification.from_pretrained(str(tmp_path)).eval()
    for output, grade in zip(outputs, grades, strict=True):
        conversation = [*ITEM["messages"], {"role": "assistant", "content": output}]
        ids = AutoTokenizer.from_pretrained(str(tmp_path)).apply_chat_template(conversation, return_tensors="pt")
        with torch.no_grad():
            expected = reference(**ids).logits.item()
        assert grade.score == pytest.approx(expected, abs=1e-5)
