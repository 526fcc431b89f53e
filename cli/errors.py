"""What the command line tells its user instead of a traceback."""

from __future__ import annotations

from bgpo.errors import BgpoError


class CliError(BgpoError):
    """Printed as one line on stderr; the command exits with status 1."""

    code = "cli_error"
