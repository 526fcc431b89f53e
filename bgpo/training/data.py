"""Datasets of a run: JSONL rows encoded with the policy's chat template, visited in a seeded order.

A row is `{"messages": [...], <any other fields>}`; the whole row is the grader's `item`. For reinforcement the last
message is the user's; for supervised training it is the assistant's answer. The order is a fresh permutation each
epoch, a pure function of (seed, epoch), so a step knows its rows without any iterator state.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bgpo.diffusion.rng import Purpose
from bgpo.errors import DataError
from bgpo.models import Policy


@dataclass(frozen=True)
class Row:
    """One encoded dataset row."""

    item: dict[str, Any]
    prompt_ids: list[int]
    answer_ids: list[int]
    """Tokens of the assistant's answer with the end token; empty where the row has no answer."""
    rejected_ids: list[int] = field(default_factory=list)
    """Of a preference pair, whose `answer_ids` are the preferred answer: the tokens of the other one."""


def load_rows(path: str | Path, policy: Policy, response_length: int, *, answers: bool, param: str) -> list[Row]:
    """Read and encode a JSONL file.

    Args:
        path: the file.
        policy: whose tokenizer, chat template and context length apply.
        response_length: tokens reserved for (or cut off from) the response.
        answers: whether rows must end with an assistant message (supervised) or with a user's (reinforcement).
        param: the spec's field, named in errors.

    Raises:
        DataError: naming the first line that cannot be used.
    """
    return [
        _encode(item, item.get("messages"), "messages", number, policy, response_length, answers, param)
        for number, item in read_items(path, param)
    ]


def load_prompts(path: str | Path, policy: Policy, response_length: int, *, param: str) -> list[Row]:
    """Read rows of any method to sample answers to: conversations, or preferences, whose `input` is one.

    Raises:
        DataError: naming the first line that cannot be used.
    """
    rows = []
    for number, item in read_items(path, param):
        given = item.get("input") if "messages" not in item else None
        source, field = (given, "input.messages") if isinstance(given, dict) else (item, "messages")
        rows.append(_encode(item, source.get("messages"), field, number, policy, response_length, False, param))
    return rows


def read_items(path: str | Path, param: str) -> list[tuple[int, dict[str, Any]]]:
    """The JSON objects of a JSONL file with their lines, counted from 1; blank lines count, but are no rows.

    Raises:
        DataError: the file cannot be read, has no rows, or a line is no JSON object.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", param) from error
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number} is not valid JSON: {error}", param, number) from error
        if not isinstance(item, dict):
            raise DataError(f"line {number} is not a JSON object", param, number)
        items.append((number, item))
    if not items:
        raise DataError(f"{path} has no rows", param)
    return items


def check_messages(messages: Any, field: str, number: int, param: str) -> None:
    """Raise DataError unless `messages` is a list of at least one message, each with a role and a text."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f'line {number} has no "{field}" list', param, number)
    for index, message in enumerate(messages):
        where = f"line {number}: {field}[{index}]"
        if not (isinstance(message, dict) and isinstance(message.get("role"), str)) or not isinstance(
            message.get("content"), str
        ):
            raise DataError(f"{where} needs a role and a text content", param, number)
        try:
            (message["role"] + message["content"]).encode()
        except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair, no tokenizer takes it
            raise DataError(f"{where} is not Unicode text: {error.reason}", param, number) from error


def encode_prompt(messages: list[dict[str, Any]], policy: Policy, response_length: int) -> list[int]:
    """Token ids of a checked conversation that ends with the user's message.

    Raises:
        ValueError: it ends otherwise, or does not fit the model's context beside the response.
    """
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("the last message before the answer must be the user's")
    prompt_ids = policy.encode_prompt(messages)
    limit = policy.max_length
    if len(prompt_ids) + response_length > limit:
        raise ValueError(
            f"the prompt has {len(prompt_ids)} tokens; with {response_length} for the response that exceeds the "
            f"model's context of {limit}"
        )
    return prompt_ids


def encode_answer(text: str, policy: Policy, response_length: int) -> list[int]:
    """Token ids of an answer with its end token. Raises ValueError when they are too many."""
    answer_ids = [*policy.encode(text), policy.end_ids[-1]]
    if len(answer_ids) > response_length:
        raise ValueError(f"the answer has {len(answer_ids)} tokens, max_completion_length is {response_length}")
    return answer_ids


def batch_indices(seed: int, n_rows: int, batch_size: int, step: int) -> list[int]:
    """Row numbers of a step's batch (steps count from 1). Every row comes once an epoch; epochs run into each other."""
    first = (step - 1) * batch_size
    orders: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}
    picked = []
    for position in range(first, first + batch_size):
        epoch, offset = divmod(position, n_rows)
        if epoch not in orders:
            # The epoch is the counter's highest word: in the lowest, epochs would read one sequence, a block apart.
            bits = np.random.Philox(key=[seed, Purpose.DATA_ORDER], counter=[0, 0, 0, epoch])
            orders[epoch] = np.random.Generator(bits).permutation(n_rows)
        picked.append(int(orders[epoch][offset]))
    return picked


def _encode(
    item: dict[str, Any],
    messages: Any,
    field: str,
    number: int,
    policy: Policy,
    response_length: int,
    answers: bool,
    param: str,
) -> Row:
    check_messages(messages, field, number, param)
    answered = messages[-1]["role"] == "assistant"
    try:
        if answers and not answered:
            raise ValueError(f"supervised training needs the assistant's answer last, found {messages[-1]['role']!r}")
        prompt_ids = encode_prompt(messages[:-1] if answered else messages, policy, response_length)
        answer_ids = encode_answer(messages[-1]["content"], policy, response_length) if answers else []
    except ValueError as error:
        raise DataError(f"line {number}: {error}", param, number) from error
    return Row(item, prompt_ids, answer_ids)
