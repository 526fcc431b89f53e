"""Preference rows: what a row becomes, and which line and field an error names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bgpo.errors import DataError
from bgpo.models import Policy
from bgpo.training.data import Row, load_prompts, load_rows
from bgpo.training.preferences import load_pairs

SYSTEM = {"role": "system", "content": "be brief"}
USER = {"role": "user", "content": "0123"}
LONG = "0" * 16


def said(text: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def pair(**changes: Any) -> dict[str, Any]:
    row = {"input": {"messages": [USER]}, "preferred_output": said("good"), "non_preferred_output": said("bad")}
    return {name: value for name, value in (row | changes).items() if value is not None}


def load(folder: Path, policy: Policy, *rows: Any) -> list[Row]:
    path = folder / "pairs.jsonl"
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in rows))
    return load_pairs(path, policy, 16, param="train_data")


def test_a_pair_is_a_prompt_with_both_answers_and_the_whole_row_as_item(tmp_path: Path, policy: Policy) -> None:
    item = pair(input={"messages": [SYSTEM, USER], "tools": [], "parallel_tool_calls": True}, note=[1])
    (row,) = load(tmp_path, policy, item)
    assert row.item == item
    answers = [policy.tokenizer.decode(ids, skip_special_tokens=False) for ids in (row.answer_ids, row.rejected_ids)]
    assert answers == ["good<|eot_id|>", "bad<|eot_id|>"]
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"messages": [SYSTEM, USER]}))
    (same,) = load_rows(chat, policy, 16, answers=False, param="train_data")
    assert row.prompt_ids == same.prompt_ids


def test_prompts_come_from_conversations_and_from_preferences(tmp_path: Path, policy: Policy) -> None:
    path = tmp_path / "rows.jsonl"
    chat = {"messages": [USER, *said("answer")], "input": {"messages": "for the grader"}}
    path.write_text("".join(json.dumps(row) + "\n" for row in (chat, pair(), {"messages": [USER]})))
    rows = load_prompts(path, policy, 16, param="data")
    assert [row.item for row in rows] == [chat, pair(), {"messages": [USER]}]
    assert [row.prompt_ids for row in rows] == [policy.encode_prompt([USER])] * 3
    assert [row.answer_ids for row in rows] == [[]] * 3
    for broken, says in (({"input": {}}, '"input.messages" list'), ({"input": "0"}, '"messages" list')):
        path.write_text(json.dumps(broken))
        with pytest.raises(DataError, match=f"line 1 .*{says}"):
            load_prompts(path, policy, 16, param="data")


def test_an_answer_may_be_empty_or_fill_its_length(tmp_path: Path, policy: Policy) -> None:
    (row,) = load(tmp_path, policy, pair(preferred_output=said(""), non_preferred_output=said("0" * 15)))
    assert (len(row.answer_ids), len(row.rejected_ids)) == (1, 16)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        ({"messages": [USER]}, '"input" object'),
        (pair(input=[USER]), '"input" object'),
        (pair(input={}), '"input.messages" list'),
        (pair(input={"messages": [USER], "tools": [{"type": "function"}]}), "input.tools"),
        (pair(input={"messages": [{"role": "user"}]}), r"input.messages\[0\] needs"),
        (pair(input={"messages": [SYSTEM]}), "input.messages: .* user"),
        (pair(input={"messages": [USER, *said("a")]}), "input.messages: .* user"),
        (pair(input={"messages": [{"role": "user", "content": "0" * 105}]}), "input.messages: .*context of 128"),
        (pair(preferred_output=None), '"preferred_output" list'),
        (pair(preferred_output="good"), '"preferred_output" list'),
        (pair(non_preferred_output=[]), '"non_preferred_output" list'),
        (pair(non_preferred_output=said(1)), r"non_preferred_output\[0\] needs"),
        (pair(preferred_output=said("\ud800")), r"preferred_output\[0\] is not Unicode"),
        (pair(preferred_output=[USER]), "preferred_output must be one assistant"),
        (pair(preferred_output=said("a") * 2), "preferred_output must be one assistant"),
        (pair(non_preferred_output=said("good")), "the same"),
        (pair(preferred_output=said(LONG)), ": preferred_output: .*17 tokens.*16"),
        (pair(non_preferred_output=said(LONG)), "non_preferred_output: .*17 tokens.*16"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_field(tmp_path: Path, policy: Policy, line: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        load(tmp_path, policy, pair(), b"", line, pair())
    assert (caught.value.line, caught.value.param) == (3, "train_data")
    assert "line 3" in caught.value.message


def test_the_example_pairs_demonstrations(tmp_path: Path, policy: Policy) -> None:
    names = [str(tmp_path / name) for name in ("good.jsonl", "bad.jsonl", "pairs.jsonl")]
    for name, answers in zip(names, (("1", "2"), ("3", "2")), strict=False):
        rows = [{"messages": [USER, *said(answer)], "note": answer} for answer in answers]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = Path(__file__).parents[3] / "examples" / "preferences" / "pair.py"
    subprocess.run([sys.executable, str(script), *names], check=True)
    (row,) = load_pairs(names[-1], policy, 16, param="train_data")
    assert row.item["note"] == "1"
    assert [policy.decode(ids) for ids in (row.answer_ids, row.rejected_ids)] == ["1", "3"]


def test_a_file_that_is_missing_or_empty_is_an_error(tmp_path: Path, policy: Policy) -> None:
    with pytest.raises(DataError, match="cannot read"):
        load_pairs(tmp_path / "absent.jsonl", policy, 16, param="validation_data")
    with pytest.raises(DataError, match="no rows"):
        load(tmp_path, policy, b"")
