"""Figures 1 and 3 from finished jobs: rows for the report, and what they say of the paper's claims."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.paper import plan
from benchmarks.paper.jobs import Job, Results
from benchmarks.paper.presets import Preset
from benchmarks.paper.statistics import deviation, half_width, mean, verdict
from benchmarks.paper.tables import Row, Table, collect

NOISE_MARGIN = 1.15
"""A ratio of bias to noise floor up to this is no sign of a bias: with some tens of draws it scatters around 1."""
PHASES = ("rollout", "reward", "loss", "optimizer")


def figure1(preset: Preset, results: Results) -> Table:
    """Memory and time of one policy update by n_t."""
    rows: list[Row] = []
    saved: dict[tuple[str, int], float] = {}
    for objective in ("bgpo", "elbo_ratio"):
        for n_t in preset.memory_n_t:
            jobs = [plan.memory_job(preset, objective, n_t, seed) for seed in preset.seeds]
            done, problems = _done(results, jobs)
            row: Row = {"objective": objective, "n_t": n_t, "seeds": len(done)}
            for name in ("saved_bytes", "peak_rss_bytes", "seconds"):
                row |= _spread(name, [result[name] for result in done])
            if done:
                saved[objective, n_t] = row["saved_bytes"]
            rows.append(row | problems)
    claims = []
    smallest, largest = min(preset.memory_n_t), max(preset.memory_n_t)
    for objective, expected in (("bgpo", 1.0), ("elbo_ratio", largest / smallest)):
        if {(objective, smallest), (objective, largest)} <= saved.keys():
            ratio = saved[objective, largest] / saved[objective, smallest]
            fits = abs(ratio / expected - 1) <= 0.1
            shape = "flat" if objective == "bgpo" else "linear"
            claims.append(
                {
                    "claim": f"memory of {objective} is {shape} in n_t",
                    "metric": f"saved bytes, n_t = {largest} over n_t = {smallest}",
                    "measured": round(ratio, 3),
                    "expected": expected,
                    "verdict": "agrees" if fits else "disagrees",
                }
            )
    return Table("figure1", "Figure 1: memory of one policy update by n_t", rows, claims)


def figure3(preset: Preset, results: Results) -> Table:
    """Spread and bias of the gradient by method and n_t, and where a step's time goes by n_t."""
    rows: list[Row] = []
    claims: list[Row] = []
    for case in ("on-policy", "off-policy"):
        jobs = [plan.gradient_job(preset, case, seed) for seed in preset.seeds]
        done, problems = _done(results, jobs)
        by_method: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
        for result in done:
            for row in result["rows"]:
                by_method[row["algorithm"], row["n_t"]].append(row)
        for (algorithm, n_t), found in by_method.items():
            row = {"kind": "gradient", "case": case, "algorithm": algorithm, "n_t": n_t, "seeds": len(found)}
            for name in ("std", "bias", "noise_floor", "bias_beyond_noise", "bias_to_ratio", "cosine"):
                row |= _spread(name, [one[name] for one in found])
            rows.append(row)
        if problems:
            rows.append({"kind": "gradient", "case": case, **problems})
        low, high = min(preset.gradients.n_t), max(preset.gradients.n_t)
        for algorithm in ("bgpo", "elbo_ratio"):
            few, many = by_method[algorithm, low], by_method[algorithm, high]
            for name in ("std", "bias"):
                falls = [a[name] - b[name] for a, b in zip(few, many, strict=True)]
                claim = _claim(f"{case}: {name} of {algorithm} falls from n_t = {low} to {high}", falls)
                if name == "bias" and few and _is_noise(few) and _is_noise(many):
                    claim["verdict"] += "; all of it is noise of the finite mean, no bias is seen"
                claims.append(claim)
        apart = [
            a["bias"] - b["bias"] for a, b in zip(by_method["diffu_grpo", 1], by_method["bgpo", high], strict=True)
        ]
        claims.append(_claim(f"{case}: bias of diffu_grpo above bgpo's at n_t = {high}", apart))
    rows += _step_times(preset, results)
    times = {row["n_t"]: row["step_seconds"] for row in rows if row["kind"] == "step time" and "step_seconds" in row}
    low, high = plan.PAPER_N_T, max(preset.n_t_grid)
    if low in times and high in times:
        claims.append(
            {
                "claim": f"a step takes only slightly longer with n_t = {high} than with {low}",
                "metric": "ratio of step seconds",
                "difference": round(times[high] / times[low], 3),
                "verdict": "agrees" if times[high] <= 1.25 * times[low] else "disagrees: more than a quarter longer",
            }
        )
    return Table("figure3", f"Figure 3: gradient spread and bias, and step time ({preset.name})", rows, claims)


def _step_times(preset: Preset, results: Results) -> list[Row]:
    """Seconds of a step by phase, the first step (which warms up) left out."""
    rows: list[Row] = []
    for method in plan.table2_methods(preset):
        runs = collect(preset, results, "sudoku", method)
        row: Row = {"kind": "step time", "algorithm": "bgpo", "n_t": method.n_t, "seeds": len(runs.curves)}
        for name in ("step", *PHASES):
            means = [
                mean([v for v in curve[f"seconds_{name}"][1:] if v is not None])
                for curve in runs.curves.values()
                if any(v is not None for v in curve.get(f"seconds_{name}", [])[1:])
            ]
            row |= _spread(f"{name}_seconds", means)
        rows.append(row)
    return rows


def _done(results: Results, jobs: Sequence[Job]) -> tuple[list[dict[str, Any]], Row]:
    """Finished results, and a row's note on those that are not."""
    done: list[dict[str, Any]] = []
    notes: list[str] = []
    for job in jobs:
        outcome = results.read(job)
        if outcome is None:
            notes.append(f"{job.label} not run")
        elif outcome.result is None:
            notes.append(f"{job.label}: {outcome.error}")
        else:
            done.append(outcome.result)
    return done, ({"not_finished": "; ".join(notes)} if notes else {})


def _spread(name: str, values: Sequence[float]) -> Row:
    if not values:
        return {}
    spread = deviation(values)
    return {
        name: _four(mean(values)),
        f"{name}_sd": None if spread is None else _four(spread),
        f"{name}_each": " ".join(f"{_four(value):g}" for value in values),
    }


def _four(value: float) -> float:
    return float(f"{value:.4g}")


def _is_noise(rows: Sequence[dict[str, float]]) -> bool:
    """Whether the bias is what chance alone would show."""
    return mean([row["bias"] / row["noise_floor"] for row in rows]) <= NOISE_MARGIN


def _claim(text: str, differences: Sequence[float]) -> Row:
    if not differences:
        return {"claim": text, "verdict": "not run"}
    half = half_width(differences)
    return {
        "claim": text,
        "metric": "difference",
        "difference": _four(mean(differences)),
        "ci95": None if half is None else _four(half),
        "verdict": verdict(differences, expected=1),
    }
