"""Datasets of a run: JSONL rows encoded with the policy's chat template, visited in a seeded order.

A row is `{"messages": [...], <any other fields>}`; the whole row is the grader's `item`. For reinforcement the last
message is the user's; for supervised training it is the assistant's answer. The order is a fresh permutation each
epoch, a pure function of (seed, epoch), so a step knows its rows without any iterator state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
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
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", param) from error
    rows = [
        _encode(_parse(line, number, param), number, policy, response_length, answers, param)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not rows:
        raise DataError(f"{path} has no rows", param)
    return rows


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


def _parse(line: bytes, number: int, param: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"line {number} is not valid JSON: {error}", param, number) from error
    messages = item.get("messages") if isinstance(item, dict) else None
    if not isinstance(messages, Sequence) or not messages or isinstance(messages, str):
        raise DataError(f'line {number} has no "messages" list', param, number)
    for message in messages:
        if not (isinstance(message, dict) and isinstance(message.get("role"), str)) or not isinstance(
            message.get("content"), str
        ):
            raise DataError(f"line {number}: every message needs a role and a text content", param, number)
        try:
            (message["role"] + message["content"]).encode()
        except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair, no tokenizer takes it
            raise DataError(f"line {number}: a message is not Unicode text: {error.reason}", param, number) from error
    return dict(item)


def _encode(item: dict[str, Any], number: int, policy: Policy, response_length: int, answers: bool, param: str) -> Row:
    def fail(message: str) -> DataError:
        return DataError(f"line {number}: {message}", param, number)

    messages = item["messages"]
    last = messages[-1]["role"]
    if answers and last != "assistant":
        raise fail(f"supervised training needs the assistant's answer last, found role {last!r}")
    if last == "assistant":
        answer_ids = [*policy.encode(messages[-1]["content"]), policy.end_ids[-1]]
        messages = messages[:-1]
    else:
        answer_ids = []
    if not messages or messages[-1]["role"] != "user":
        raise fail("the last message before the answer must be the user's")
    prompt_ids = policy.encode_prompt(messages)
    limit = policy.model.config.max_sequence_length
    if len(prompt_ids) + response_length > limit:
        raise fail(
            f"the prompt has {len(prompt_ids)} tokens; with {response_length} for the response that exceeds the "
            f"model's context of {limit}"
        )
    if answers and len(answer_ids) > response_length:
        raise fail(f"the answer has {len(answer_ids)} tokens, max_completion_length is {response_length}")
    return Row(item, prompt_ids, answer_ids if answers else [])
