"""Preference pairs: OpenAI's JSONL rows of a prompt with a preferred and a non-preferred answer, encoded.

    {"input": {"messages": [...]}, "preferred_output": [{"role": "assistant", "content": "..."}],
     "non_preferred_output": [{"role": "assistant", "content": "..."}], <any other fields>}

The whole row is a grader's `item`. Tools are not supported, nor are answers of several messages.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bgpo.errors import DataError
from bgpo.models import Policy
from bgpo.training.data import Row, check_messages, encode_answer, encode_prompt, read_items

OUTPUTS = ("preferred_output", "non_preferred_output")


def load_pairs(path: str | Path, policy: Policy, max_completion_length: int, *, param: str) -> list[Row]:
    """Read and encode a JSONL file of preferences.

    Args:
        path: the file.
        policy: whose tokenizer, chat template and context length apply.
        max_completion_length: most tokens of an answer, its end token included.
        param: the spec's field, named in errors.

    Raises:
        DataError: naming the first line that cannot be used, and its field.
    """
    return [_encode(item, number, policy, max_completion_length, param) for number, item in read_items(path, param)]


def _encode(item: dict[str, Any], number: int, policy: Policy, max_completion_length: int, param: str) -> Row:
    given = item.get("input")
    if not isinstance(given, dict):
        raise DataError(f'line {number} has no "input" object', param, number)
    if given.get("tools"):
        raise DataError(f"line {number}: input.tools are not supported", param, number)
    check_messages(given.get("messages"), "input.messages", number, param)
    texts = [_answer(item, name, number, param) for name in OUTPUTS]
    if texts[0] == texts[1]:
        raise DataError(f"line {number}: preferred_output and non_preferred_output are the same", param, number)

    def encoded(field: str, encode: Callable[[Any, Policy, int], list[int]], value: Any) -> list[int]:
        try:
            return encode(value, policy, max_completion_length)
        except ValueError as error:
            raise DataError(f"line {number}: {field}: {error}", param, number) from error

    prompt_ids = encoded("input.messages", encode_prompt, given["messages"])
    chosen_ids, rejected_ids = (encoded(name, encode_answer, text) for name, text in zip(OUTPUTS, texts, strict=True))
    return Row(item, prompt_ids, chosen_ids, rejected_ids)


def _answer(item: dict[str, Any], name: str, number: int, param: str) -> str:
    output = item.get(name)
    check_messages(output, name, number, param)
    assert isinstance(output, list)
    if len(output) != 1 or output[0]["role"] != "assistant":
        raise DataError(f"line {number}: {name} must be one assistant message", param, number)
    return str(output[0]["content"])
