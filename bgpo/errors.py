"""The one error hierarchy of the project. Every class has a stable `code`, shown to users and stored with failed jobs.

Service errors (`jobs.errors`) extend it with an HTTP status. Classes also inherit the standard type a library caller
would expect (ValueError for bad input), and pickle with their arguments.
"""

from __future__ import annotations


class BgpoError(Exception):
    """Base of all errors this project raises on purpose.

    `message` says what was wrong and what to change; `param` is the dotted path of the offending field, if one is.
    """

    code: str = "server_error"
    details: str | None = None
    """More than a message, for the author of what failed."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return f"{self.param}: {self.message}" if self.param else self.message


class InvalidInput(BgpoError, ValueError):
    """A value the user gave is wrong."""

    code = "invalid_value"


class SpecError(InvalidInput):
    """A run specification does not validate."""

    code = "invalid_spec"


class DataError(InvalidInput):
    """A dataset cannot be used; `line` is the 1-based line of the first offending row."""

    code = "invalid_file_format"

    def __init__(self, message: str, param: str | None = None, line: int | None = None) -> None:
        super().__init__(message, param)
        self.args = (message, param, line)
        self.line = line


class ModelError(InvalidInput):
    """A checkpoint cannot be loaded, or does not fit the run."""

    code = "bad_model"


class GraderError(BgpoError):
    """Grading failed in a way the run cannot go on from; `details` may be a traceback of the user's own grader."""

    code = "grader_error"

    def __init__(self, message: str, param: str | None = None, details: str | None = None) -> None:
        super().__init__(message, param)
        self.args = (message, param, details)
        self.details = details


class SandboxError(BgpoError):
    """Foreign code cannot be run here: there is no sandbox that holds, and no consent to do without."""

    code = "sandbox_unavailable"


class NonFiniteError(BgpoError):
    """Loss or gradient became NaN or infinite too often."""

    code = "nan"


class ZeroGradientError(BgpoError):
    """Rewards differ and yet nothing would be learned from them."""

    code = "zero_gradient"


class OutOfMemory(BgpoError):
    """The device ran out of memory and halving the micro-batch did not help."""

    code = "oom"


class DiskFullError(BgpoError):
    """A checkpoint does not fit on the disk, or in the user's share of it."""

    code = "disk_full"


class PeerLost(BgpoError):
    """Another process of the run is gone: what ended that one is the cause, this only its echo."""

    code = "peer_lost"
