"""The text of an answer while its tokens are decided block by block from the left.

A piece is given away only when nothing that follows can change it: not the second half of a character whose first
bytes stand at its end, nor the rest of a stop string that may have begun there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

_HALF_CHARACTER = "\ufffd"


class AnswerText:
    """One answer. Feed it the decided tokens until `finish_reason` is set."""

    def __init__(
        self, decode: Callable[[list[int]], str], end_ids: Collection[int], max_tokens: int, stop: Sequence[str] = ()
    ) -> None:
        """`decode` turns token ids into text; the answer ends at an end token, a stop string, or `max_tokens`."""
        self._decode, self._end_ids, self._max_tokens, self._stop = decode, end_ids, max_tokens, stop
        self._given = ""
        self.finish_reason: Literal["stop", "length"] | None = None
        self.tokens = 0
        """Of the answer, the end token or the one that completes the stop string included."""

    def advance(self, decided: Sequence[int], *, complete: bool) -> str:
        """What is new and final in the text.

        Args:
            decided: all tokens from the first one on that will not change.
            complete: no more will come.
        """
        ids = list(decided[: self._max_tokens])
        end = next((place for place, token in enumerate(ids) if token in self._end_ids), None)
        if end is not None:
            ids = ids[: end + 1]
        self.tokens = len(ids)
        text = self._decode(ids)
        cut = self._find_stop(text)
        if cut is not None:
            text, self.finish_reason = text[:cut], "stop"
            self.tokens = next(n for n in range(1, len(ids) + 1) if self._find_stop(self._decode(ids[:n])) is not None)
        elif end is not None:
            self.finish_reason = "stop"
        elif complete or len(ids) == self._max_tokens:
            self.finish_reason = "length"
        else:
            text = text[: self._settled(text)]
        piece = text[len(self._given) :]
        self._given += piece
        return piece

    def _find_stop(self, text: str) -> int | None:
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        return min(found, default=None)

    def _settled(self, text: str) -> int:
        """Characters that no later token can change."""
        settled = len(text.rstrip(_HALF_CHARACTER))
        longest = max((len(stop) for stop in self._stop), default=1)
        for begin in range(max(0, settled - longest + 1), settled):
            if any(stop.startswith(text[begin:settled]) for stop in self._stop):
                return begin
        return settled
