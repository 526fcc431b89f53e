"""Where the public test sets are, on machines that have them."""

from __future__ import annotations

from pathlib import Path

import pytest

PUBLIC = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def public_data() -> Path:
    if not PUBLIC.is_dir():
        pytest.skip(f"no public test sets at {PUBLIC}")
    return PUBLIC
