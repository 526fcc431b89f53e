"""Finding the answer in a completion: `<answer>` tags and `\\boxed{}`, shared by the graders that parse answers."""

from __future__ import annotations

import re

MAX_TEXT = 65_536
"""Only this many trailing characters of a completion are searched: an answer comes last."""

_OPEN, _CLOSE = "<answer>", "</answer>"
_BRACE = re.compile(r"\\(?:boxed|fbox)[ \t]*\{|[{}]")


def answer_text(text: str) -> str:
    """The content of the last `<answer>` tag (to the end if never closed), or the whole text without tags.

    A tag that a completion ends right behind is none, where there is another.
    """
    text = text[-MAX_TEXT:]
    end = len(text)
    while (start := text.rfind(_OPEN, 0, end)) >= 0 and not text[start + len(_OPEN) : end].strip():
        end = start
    if start < 0:
        return text if end == len(text) else ""
    content = text[start + len(_OPEN) : end]
    close = content.find(_CLOSE)
    return content if close < 0 else content[:close]


def boxed(text: str) -> str | None:
    """The content of the `\\boxed{...}` that closes last, nested braces included, in one pass; `\\fbox` is the same."""
    found: str | None = None
    opened: list[int | None] = []  # start of a box's content, None for an ordinary brace
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            opened.append(brace.end() if brace[0] != "{" else None)
        elif opened and (start := opened.pop()) is not None:
            found = text[start : brace.start()]
    return found
