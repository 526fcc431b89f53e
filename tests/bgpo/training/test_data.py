"""Datasets: what a row becomes, which line an error names, and the order rows come in."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from bgpo.errors import DataError
from bgpo.models import Policy
from bgpo.training.data import Row, batch_indices, load_rows

USER = {"role": "user", "content": "0123"}
ASSISTANT = {"role": "assistant", "content": "4567"}
SYSTEM = {"role": "system", "content": "be brief"}


def load(tmp_path: Path, policy: Policy, *lines: bytes | dict[str, Any], answers: bool = False) -> list[Row]:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return load_rows(path, policy, 16, answers=answers, param="train_data")


def test_a_reinforcement_row_is_the_prompt_and_the_whole_item(tmp_path: Path, policy: Policy) -> None:
    item = {"messages": [SYSTEM, USER], "puzzle": [1, {"a": None}]}
    (row,) = load(tmp_path, policy, item)
    assert row.item == item
    assert row.answer_ids == []
    text = (
        "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nbe brief<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n0123<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert policy.tokenizer.decode(row.prompt_ids, skip_special_tokens=False) == text


def test_a_supervised_row_has_the_answer_with_its_end_token(tmp_path: Path, policy: Policy) -> None:
    (row,) = load(tmp_path, policy, {"messages": [USER, ASSISTANT]}, answers=True)
    (prompt_only,) = load(tmp_path, policy, {"messages": [USER]})
    assert row.prompt_ids == prompt_only.prompt_ids
    assert policy.tokenizer.decode(row.answer_ids, skip_special_tokens=False) == "4567<|eot_id|>"
    assert row.answer_ids[-1] in policy.end_ids


def test_reinforcement_drops_a_demonstration(tmp_path: Path, policy: Policy) -> None:
    (row,) = load(tmp_path, policy, {"messages": [USER, ASSISTANT]})
    assert "4567" not in policy.decode(row.prompt_ids)
    assert row.answer_ids == []


def test_blank_lines_count_as_lines_but_not_as_rows(tmp_path: Path, policy: Policy) -> None:
    rows = load(tmp_path, policy, {"messages": [USER]}, b"", b"  \r", {"messages": [USER]})
    assert len(rows) == 2
    with pytest.raises(DataError, match="line 3") as caught:
        load(tmp_path, policy, {"messages": [USER]}, b"", b"{")
    assert caught.value.line == 3


def with_messages(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"messages": [', "not valid JSON"),
        (b'"messages"', "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'{"messages": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        ({"prompt": "0123"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "0123"}, "messages"),
        (with_messages("0123"), "role"),
        (with_messages({"role": "user"}), "content"),
        (with_messages({"role": 1, "content": "0123"}), "role"),
        (with_messages({"role": "user", "content": [{"type": "text", "text": "0"}]}), "content"),
        (with_messages({"role": "user", "content": "\ud800"}), "Unicode"),
        (with_messages({"role": "\ud800", "content": "0"}, USER), "Unicode"),
        (with_messages(SYSTEM), "user"),
        (with_messages(ASSISTANT), "user"),
        (with_messages(USER, ASSISTANT, ASSISTANT), "user"),
        (with_messages({"role": "user", "content": "0" * 105}), "context of 128"),
    ],
)
def test_a_bad_row_is_named_by_its_line(
    tmp_path: Path, policy: Policy, line: bytes | dict[str, Any], says: str
) -> None:
    good = with_messages(USER)
    with pytest.raises(DataError, match=says) as caught:
        load(tmp_path, policy, good, good, line, good)
    assert caught.value.line == 3
    assert caught.value.param == "train_data"
    assert "line 3" in caught.value.message


def test_supervised_rows_need_an_answer_that_fits(tmp_path: Path, policy: Policy) -> None:
    good = with_messages(USER, ASSISTANT)
    with pytest.raises(DataError, match=r"line 2.*assistant"):
        load(tmp_path, policy, good, with_messages(USER), answers=True)
    with pytest.raises(DataError, match=r"line 2.*17 tokens.*16"):
        load(tmp_path, policy, good, with_messages(USER, {**ASSISTANT, "content": "4" * 16}), answers=True)
    fits = with_messages(USER, {**ASSISTANT, "content": "4" * 15})
    assert len(load(tmp_path, policy, fits, answers=True)[0].answer_ids) == 16


def test_a_prompt_may_fill_the_context_to_the_last_token(tmp_path: Path, policy: Policy) -> None:
    frame = len(load(tmp_path, policy, with_messages(USER))[0].prompt_ids) - len(USER["content"])
    longest = "0" * (128 - 16 - frame)
    assert len(load(tmp_path, policy, with_messages({**USER, "content": longest}))[0].prompt_ids) == 112
    with pytest.raises(DataError, match="113 tokens"):
        load(tmp_path, policy, with_messages({**USER, "content": longest + "0"}))


def test_a_file_that_is_missing_or_empty_is_an_error(tmp_path: Path, policy: Policy) -> None:
    with pytest.raises(DataError, match="cannot read") as caught:
        load_rows(tmp_path / "absent.jsonl", policy, 16, answers=False, param="validation_data")
    assert caught.value.param == "validation_data"
    for content in ((), (b"", b"\t")):
        with pytest.raises(DataError, match="no rows"):
            load(tmp_path, policy, *content)


def order(seed: int, n_rows: int, batch_size: int, steps: int) -> list[int]:
    return [row for step in range(1, steps + 1) for row in batch_indices(seed, n_rows, batch_size, step)]


@pytest.mark.parametrize(("n_rows", "batch_size"), [(12, 4), (10, 4), (3, 7), (1, 2), (5, 5)])
def test_every_row_comes_once_an_epoch(n_rows: int, batch_size: int) -> None:
    visited = order(9, n_rows, batch_size, 3 * n_rows)
    assert len(visited) == 3 * n_rows * batch_size
    for first in range(0, len(visited) - n_rows + 1, n_rows):
        assert sorted(visited[first : first + n_rows]) == list(range(n_rows))


def test_the_order_is_a_function_of_seed_and_step_alone() -> None:
    straight = [batch_indices(4, 100, 7, step) for step in range(1, 60)]
    backwards = [batch_indices(4, 100, 7, step) for step in reversed(range(1, 60))]
    assert straight == backwards[::-1]
    assert order(4, 100, 100, 1) != order(5, 100, 100, 1)
    # The batch size cuts the same sequence differently.
    assert order(4, 100, 7, 50) == order(4, 100, 10, 35)


def test_epochs_are_shuffled_independently() -> None:
    """Rows that were neighbours in one epoch are neighbours in the next no more often than chance: once a pair of
    epochs, as the 999 pairs of 1000 rows each recur with probability 1 / 1000."""
    n_rows, shared = 1000, 0
    for seed in range(10):
        visited = order(seed, n_rows, n_rows, 3)
        epochs = [visited[i : i + n_rows] for i in range(0, 3 * n_rows, n_rows)]
        pairs = [set(itertools.pairwise(epoch)) for epoch in epochs]
        shared += len(pairs[0] & pairs[1]) + len(pairs[1] & pairs[2])
    assert shared < 50, "20 are expected, Poisson"
