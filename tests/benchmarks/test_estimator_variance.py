"""The benchmark's statistics against formulas and known cases, and the whole of it on a model of a few weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.estimator_variance import Repetitions, compare, main, ratio_error, repetitions
from bgpo.diffusion.estimators import ESTIMATORS
from bgpo.models.scratch import create_checkpoint


def noisy(centre: list[float], spread: float, repeats: int, seed: int) -> Repetitions:
    """Gradients around a known one, every weight with variance spread^2, and values with variance 4 spread^2."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((repeats, len(centre)), generator=generator)
    values = 3 + 2 * spread * torch.randn(repeats, generator=generator)
    return repetitions(list(torch.tensor(centre) + spread * noise), values.tolist())


def test_deviations_have_the_trace_of_the_covariance_as_their_mean() -> None:
    gradients = torch.randn((7, 5), generator=torch.Generator().manual_seed(0))
    found = repetitions(list(gradients), [0.0] * 7)
    trace = np.trace(np.cov(gradients.double().numpy(), rowvar=False))
    assert found.deviations.mean() == pytest.approx(trace, rel=1e-5)
    assert found.variance_of_mean == pytest.approx(trace / 7, rel=1e-5)
    torch.testing.assert_close(found.mean, gradients.mean(0))


def test_a_known_variance_and_a_known_bias_are_found() -> None:
    """Two responses with |gradient|^2 = 25 each; `systematic` has half the spread, `quadrature` is off by 1."""
    centre = [3.0, 4.0] + [0.0] * 8
    gold = [noisy(centre, 0.01, 50, seed) for seed in (1, 2)]
    measured = {
        "bernoulli": [noisy(centre, 1.0, 3000, seed) for seed in (3, 4)],
        "systematic": [noisy(centre, 0.5, 3000, seed) for seed in (5, 6)],
        "quadrature": [noisy([3.0, 4.0, 1.0, *[0.0] * 7], 1.0, 3000, seed) for seed in (7, 8)],
    }
    first, second, third = compare("task", 4, measured, gold)  # type: ignore[arg-type]  # three names are enough here
    assert first["gradient_variance"] == pytest.approx(10 / 25, rel=0.05)
    assert (first["ratio"], first["ratio_error"], first["value_ratio"]) == (1.0, None, 1.0)
    assert second["ratio"] == pytest.approx(0.25, rel=0.05)
    assert second["value_ratio"] == pytest.approx(0.25, rel=0.1)
    for row in (first, second):
        assert row["bias_sq"] < 3 * row["noise_floor"] < 0.01
    assert third["bias_sq"] == pytest.approx(1 / 25, rel=0.2)
    assert third["bias_sq"] > 20 * third["noise_floor"]


def test_the_ratios_error_is_that_of_independent_means() -> None:
    above, below = noisy([0.0] * 4, 2.0, 200, 1), noisy([0.0] * 4, 1.0, 300, 2)
    relative = [float(r.deviations.std()) / r.deviations.mean() / len(r.deviations) ** 0.5 for r in (above, below)]
    expected = above.deviations.mean() / below.deviations.mean() * (relative[0] ** 2 + relative[1] ** 2) ** 0.5
    assert ratio_error([above], [below]) == pytest.approx(expected, rel=0.15)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["estimator_variance", *arguments])
    try:
        main()
    finally:
        torch.set_num_threads(threads)


def test_every_estimator_is_measured_on_every_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_checkpoint(tmp_path / "model", d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16)
    out = tmp_path / "out.json"
    sizes = ["--n-t", "1", "2", "--responses", "2", "--canvases", "24", "--gold", "64"]
    run(monkeypatch, "--model", str(tmp_path / "model"), *sizes, "--json", str(out))
    rows = json.loads(out.read_bytes())["rows"]
    assert [(row["task"], row["n_t"], row["estimator"]) for row in rows] == [
        (task, n_t, name) for task in ("sudoku", "countdown") for n_t in (1, 2) for name in ESTIMATORS
    ]
    for row in rows:
        assert row["gradient_variance"] > 0
        assert (row["ratio"] == 1.0) == (row["estimator"] == "bernoulli")
        if row["estimator"] != "quadrature":
            assert row["bias_sq"] < 4 * row["noise_floor"]


def test_too_few_canvases_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--canvases", "16")
    assert "twice the largest --n-t" in capsys.readouterr().err
