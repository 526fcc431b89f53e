"""What the loop reports becomes valid records, numbers without a JSON form included."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bgpo.records import ErrorRecord, LogRecord, MetricRecord, Record, RecordWriter, parse_record
from bgpo.training.reporter import Reporter, Stopwatch


def report(tmp_path: Path, use: Callable[[Reporter], None]) -> list[Record]:
    path = tmp_path / "records.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    use(Reporter(RecordWriter(descriptor), 9))
    os.close(descriptor)
    return [parse_record(line) for line in path.read_bytes().splitlines()]


def test_numbers_that_are_not_finite_are_left_out_with_a_warning(tmp_path: Path) -> None:
    values = {"loss": 0.5, "grad_norm": float("inf"), "elbo_mean": float("nan")}
    warning, metric = report(tmp_path, lambda reporter: reporter.metrics(3, "train", values))
    assert isinstance(warning, LogRecord)
    assert warning.level == "warn"
    assert "elbo_mean, grad_norm" in warning.message
    assert isinstance(metric, MetricRecord)
    assert (metric.step, metric.total_steps, metric.values) == (3, 9, {"loss": 0.5})


def test_an_error_names_where_the_run_was(tmp_path: Path) -> None:
    def use(reporter: Reporter) -> None:
        reporter.error("bad_model", "no")
        reporter.enter("rollout", 4)
        reporter.error("oom", "too large", "method.micro_batch")

    first, _, second = report(tmp_path, use)
    assert isinstance(first, ErrorRecord)
    assert isinstance(second, ErrorRecord)
    assert (first.phase, first.step, first.param) == ("loading_model", 0, None)
    assert (second.phase, second.step, second.code, second.param) == ("rollout", 4, "oom", "method.micro_batch")


def test_a_stopwatch_adds_up_by_name_also_when_a_block_fails() -> None:
    watch = Stopwatch()
    with watch.measure("a"):
        pass
    once = watch.seconds["a"]
    try:
        with watch.measure("a"), watch.measure("b"):
            raise KeyError
    except KeyError:
        pass
    assert watch.seconds["a"] >= once + watch.seconds["b"] >= 0
