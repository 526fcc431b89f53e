"""Runs checks one after another: `python -m tests.contract.clients sync|async` in a client's environment.

Reads `{"check", "url"}` from stdin and answers `{"failed": null or a traceback}`; in between a check may ask for a step
with `{"step", "arguments"}` and reads `{"result"}` or `{"error"}`. All one JSON document a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from typing import Any

from tests.contract.clients import CHECKS, VERSION
from tests.contract.clients.contract import Contract


def main() -> None:
    asynchronous = sys.argv[1] == "async"
    channel, sys.stdout = sys.stdout, sys.stderr  # what anything prints must not get between the lines

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    def ask(step: str, arguments: dict[str, Any]) -> Any:
        say({"step": step, "arguments": arguments})
        answer = json.loads(sys.stdin.readline())
        if "error" in answer:
            raise RuntimeError(f"step {step}: {answer['error']}")
        return answer["result"]

    async def run(name: str, url: str) -> None:
        contract = Contract(url, asynchronous, ask)
        try:
            await CHECKS[name].run(contract)
        finally:
            await contract.close()

    say({"version": VERSION})
    for line in sys.stdin:
        task = json.loads(line)
        failed = None
        try:
            asyncio.run(run(task["check"], task["url"]))
        except Exception:  # process boundary: the test shows whatever went wrong
            failed = traceback.format_exc()
        say({"failed": failed})


main()
