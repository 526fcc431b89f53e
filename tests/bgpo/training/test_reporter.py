"""What the loop reports becomes valid records, numbers without a JSON form included."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from bgpo.records import ErrorRecord, LogRecord, MetricRecord, Record, RecordWriter, parse_record
from bgpo.training.reporter import Reporter, Stopwatch, peak_memory_bytes


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


class ListSink:
    run_id = "r"

    def __init__(self, *, broken: bool = False) -> None:
        self.logged: list[tuple[int, str, dict[str, float]]] = []
        self.closed = 0
        self._broken = broken

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if self._broken:
            raise ConnectionError("the tracker is down")
        self.logged.append((step, split, dict(values)))

    def close(self) -> None:
        self.closed += 1


def test_a_sink_that_fails_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    good, bad = ListSink(), ListSink(broken=True)

    def use(reporter: Reporter) -> None:
        reporter.attach([bad, good])
        for step in (1, 2):
            reporter.metrics(step, "train", {"loss": step / 2})
        reporter.close()
        reporter.close()

    first, warning, second = report(tmp_path, use)
    assert isinstance(first, MetricRecord)
    assert isinstance(second, MetricRecord)
    assert isinstance(warning, LogRecord)
    assert warning.level == "warn"
    assert "the tracker is down" in warning.message
    assert good.logged == [(1, "train", {"loss": 0.5}), (2, "train", {"loss": 1.0})]
    assert (good.closed, bad.closed) == (1, 0)


def test_other_processes_say_only_why_they_fail(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(None, 9)
    reporter.enter("rollout", 3)
    reporter.metrics(3, "train", {"loss": float("nan")})
    reporter.log("warn", "no")
    assert capsys.readouterr() == ("", "")
    reporter.error("oom", "too large")
    assert capsys.readouterr() == ("", "rollout, step 3: too large\n")


def test_peak_memory_holds_what_was_allocated() -> None:
    block = torch.ones(30_000_000, dtype=torch.uint8)
    assert peak_memory_bytes(torch.device("cpu")) > block.numel()


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
