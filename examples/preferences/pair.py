"""Make preference rows of two files of demonstrations, row by row: the first file's answers are preferred.

    python examples/preferences/pair.py good.jsonl bad.jsonl pairs.jsonl

Rows are `{"messages": [..., <the assistant's answer>], <any other fields>}`, with the same questions in both files.
Rows that are answered alike are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def pair(good: str, bad: str) -> str:
    """One row of the result; empty when both answers are the same."""
    chosen, rejected = json.loads(good), json.loads(bad)
    *question, preferred = chosen.pop("messages")
    *same_question, other = rejected["messages"]
    if question != same_question:
        raise SystemExit(f"the files ask different questions: {question} and {same_question}")
    if preferred == other:
        return ""
    row = {"input": {"messages": question}, "preferred_output": [preferred], "non_preferred_output": [other]}
    return json.dumps(row | chosen, separators=(",", ":")) + "\n"


if __name__ == "__main__":
    first, second, out = map(Path, sys.argv[1:])
    rows = zip(first.read_text().splitlines(), second.read_text().splitlines(), strict=True)
    out.write_text("".join(pair(good, bad) for good, bad in rows))
