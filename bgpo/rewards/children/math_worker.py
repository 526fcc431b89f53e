"""The process that runs math-verify: reads pairs on stdin, says on stdout whether they are equal.

SymPy evaluates what it reads, and `9^{9^9}` never ends; signals, which math-verify would use, work in the main thread
only. So it runs here, and each pair may use `CPU_SECONDS` of processor time, which a busy machine does not shorten: a
pair that needs more ends this process (SIGXCPU), and the caller starts another. Started by path, imports nothing of
bgpo. Lines are JSON: in `[gold, answer]`; out `true` when the gold has been read (`false`: it cannot be, end of the
exchange), then `true` or `false` for equal.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import resource
import sys
from typing import Any

CPU_SECONDS = 2
MEMORY_BYTES = 4 * 2**30


def main() -> None:
    """Serve until stdin ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # whatever a library prints must not look like an answer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    import math_verify  # type: ignore[import-untyped, unused-ignore]  # ships no types

    logging.disable(logging.CRITICAL)  # math-verify warns at each call that it has no timeout
    _reference(math_verify, "x^2")  # SymPy loads much at its first use
    out.write("ready\n")
    os.dup2(silent, 2)
    for line in sys.stdin:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(usage.ru_utime + usage.ru_stime) + CPU_SECONDS + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        gold, answer = json.loads(line)
        parsed = _reference(math_verify, gold)
        out.write("true\n" if parsed else "false\n")
        if parsed:
            out.write("true\n" if _equal(math_verify, parsed, answer) else "false\n")


@functools.lru_cache(maxsize=256)  # a group of answers shares its reference
def _reference(math_verify: Any, text: str) -> list[Any]:
    """A reference, parsed, and evaluated here once: SymPy may only now find out that it never ends."""
    parsed = _parse(math_verify, text)
    if parsed:
        _equal(math_verify, parsed, "0.7071")
    return parsed


def _parse(math_verify: Any, text: str) -> list[Any]:
    try:
        parsed: list[Any] = math_verify.parse("\\boxed{" + text + "}", parsing_timeout=None)
    except Exception:  # SymPy raises nearly anything for text that is no mathematics; such text has no value
        return []
    return parsed


def _equal(math_verify: Any, gold: list[Any], answer: str) -> bool:
    try:
        return bool(math_verify.verify(gold, _parse(math_verify, answer), timeout_seconds=None))
    except Exception:  # as in _parse: not comparable, so not equal
        return False


if __name__ == "__main__":
    main()
