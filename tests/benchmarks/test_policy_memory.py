"""The memory benchmark shows what the paper's Figure 1 claims, on a small grid."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_bgpo_is_flat_and_elbo_ratio_linear(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    command = [sys.executable, "-m", "benchmarks.policy_memory", "--n-t", "2", "4", "8", "--json", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    saved = {(row["objective"], row["n_t"]): row["saved_bytes"] for row in json.loads(out.read_bytes())["rows"]}
    assert saved["bgpo", 4] == pytest.approx(saved["bgpo", 2], rel=0.02)
    assert saved["bgpo", 8] == pytest.approx(saved["bgpo", 2], rel=0.02)
    assert saved["elbo_ratio", 4] == pytest.approx(2 * saved["elbo_ratio", 2], rel=0.02)
    assert saved["elbo_ratio", 8] == pytest.approx(4 * saved["elbo_ratio", 2], rel=0.02)
