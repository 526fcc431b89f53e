"""The values of secrets that graders use, handed to a run by whoever starts it: never in argv, never in a file.

A JSON object of names and values, read once at the start, before anything is spawned:

- from the descriptor of `--secret-fd`, the reading end of a pipe, for a run of one process: what was read is gone;
- else from the variable BGPO_RUN_SECRETS, for the processes of `accelerate launch`, which passes no descriptors on, and
  for a shell. It is deleted from the environment, so nothing that the run starts inherits it. The kernel goes on
  showing a process's first environment in /proc/PID/environ, to its own user: a sandbox has a /proc of its own.
"""

from __future__ import annotations

import json
import os

from bgpo.errors import SpecError

VARIABLE = "BGPO_RUN_SECRETS"


def take_secrets(fd: int | None = None) -> dict[str, str]:
    """Read and remove what there is.

    Args:
        fd: descriptor of a pipe, read to its end and closed; None = the environment variable.

    Raises:
        SpecError: it cannot be read or is no JSON object of strings; the message does not quote it.
    """
    text = os.environ.pop(VARIABLE, None)
    source = f"the environment variable {VARIABLE}"
    if fd is not None:
        source = "the descriptor of --secret-fd"
        try:
            with open(fd, "rb") as pipe:
                text = pipe.read().decode()
        except (OSError, ValueError) as error:
            raise SpecError(f"{source} cannot be read: {type(error).__name__}") from None
    if text is None:
        return {}
    try:
        secrets = json.loads(text)
    except ValueError:  # whose message and cause would show a part of it
        secrets = None
    if not isinstance(secrets, dict) or not all(isinstance(value, str) for value in secrets.values()):
        raise SpecError(f"{source} must hold a JSON object of strings")
    return secrets
