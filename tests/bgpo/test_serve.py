"""`python -m bgpo.serve` as a process: what it answers to whom, and in which pieces."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgpo.serving.protocol import (
    BatchCommand,
    BeatRecord,
    BlockRecord,
    CancelCommand,
    DoneRecord,
    FailedRecord,
    IdleRecord,
    ReadyRecord,
    Record,
    Row,
    ServedModel,
    parse_record,
)
from bgpo.spec import RolloutSpec

ROLLOUT = RolloutSpec(max_completion_length=16, diffusion_steps=8, block_length=4, temperature=1.0)


class Served:
    """The process, spoken to."""

    def __init__(self, *options: str) -> None:
        reader, writer = os.pipe()
        self._reader = reader
        self._partial = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bgpo.serve", "--record-fd", str(writer), "--threads", "1", *options],
            stdin=subprocess.PIPE,
            pass_fds=[writer],
        )
        os.close(writer)
        self._lines: list[bytes] = []

    def send(self, command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command.model_dump_json().encode() + b"\n")
        self.process.stdin.flush()

    def next(self, timeout: float = 60) -> Record:
        deadline = time.monotonic() + timeout
        while not self._lines:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the process said nothing"
            chunk = os.read(self._reader, 65536)
            assert chunk, "the process has ended"
            *self._lines, self._partial = (self._partial + chunk).split(b"\n")
        return parse_record(self._lines.pop(0))

    def answer(self, command: BatchCommand) -> list[Record]:
        """All records of a batch but beats, the last one `idle`."""
        self.send(command)
        found: list[Record] = []
        while not found or not isinstance(found[-1], IdleRecord):
            record = self.next()
            if not isinstance(record, BeatRecord):
                found.append(record)
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        os.close(self._reader)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served("--max-models=1")
    assert isinstance(served.next(), ReadyRecord)
    yield served
    served.close()


@pytest.fixture
def batch(model_root: Path) -> Callable[..., BatchCommand]:
    def make(*rows: Row, rollout: RolloutSpec = ROLLOUT, model: str = "tiny") -> BatchCommand:
        return BatchCommand(model=ServedModel(key=model, path=str(model_root / model)), rollout=rollout, rows=[*rows])

    return make


def row(id: str = "a", **changes: Any) -> Row:
    values: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 16, "seed": 3}
    return Row(id=id, **(values | changes))


def text_of(records: list[Record], id: str) -> str:
    blocks = [record for record in records if isinstance(record, BlockRecord) and record.id == id]
    assert [block.seq for block in blocks] == list(range(len(blocks)))
    return "".join(block.text for block in blocks)


def test_a_row_comes_in_blocks_and_is_done(served: Served, batch: Callable[..., BatchCommand]) -> None:
    *records, idle = served.answer(batch(row()))
    done = records[-1]
    assert isinstance(done, DoneRecord)
    assert len(records) > 2, "the canvas has four blocks"
    assert (done.completion_tokens, done.finish_reason) == (16, "length")
    assert done.prompt_tokens > 5
    assert idle == IdleRecord(models=["tiny"])


def test_the_text_is_what_generate_says(served: Served, batch: Callable[..., BatchCommand], model_root: Path) -> None:
    code = (
        "import sys, json, torch; from bgpo.models import load_policy; from bgpo.generation import generate; "
        "from bgpo.spec import RolloutSpec; torch.set_num_threads(1); "
        "print(json.dumps(generate(load_policy(sys.argv[1]), ['hi'], RolloutSpec.model_validate_json(sys.argv[2]), "
        "seed=3)[0].text))"
    )
    command = [sys.executable, "-c", code, str(model_root / "tiny"), ROLLOUT.model_dump_json()]
    expected = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert text_of(served.answer(batch(row())), "a") == expected


def test_a_seed_names_the_answer_whatever_is_beside_it(served: Served, batch: Callable[..., BatchCommand]) -> None:
    long = [{"role": "user", "content": "something longer"}]
    alone = text_of(served.answer(batch(row("a"))), "a")
    records = served.answer(batch(row("b", seed=4), row("a"), row("c", messages=long)))
    assert text_of(records, "a") == alone
    assert text_of(records, "b") != alone


def test_max_tokens_and_stop_cut_the_answer(served: Served, batch: Callable[..., BatchCommand]) -> None:
    whole = text_of(served.answer(batch(row())), "a")
    *records, _ = served.answer(batch(row("a", max_tokens=5), row("b", stop=[whole[3:5]])))
    ends = {record.id: record for record in records if isinstance(record, DoneRecord)}
    assert (ends["a"].finish_reason, ends["a"].completion_tokens) == ("length", 5)
    assert whole.startswith(text_of(records, "a").rstrip("\ufffd"))
    assert ends["b"].finish_reason == "stop"
    assert text_of(records, "b") == whole[: whole.index(whole[3:5])]


def test_a_row_that_does_not_fit_fails_alone(served: Served, batch: Callable[..., BatchCommand]) -> None:
    *records, _ = served.answer(batch(row("a", messages=[{"role": "user", "content": "x" * 200}]), row("b")))
    (failed,) = (record for record in records if isinstance(record, FailedRecord))
    assert (failed.id, failed.code, failed.param) == ("a", "context_length_exceeded", "messages")
    assert "128 tokens" in failed.message
    assert any(isinstance(record, DoneRecord) and record.id == "b" for record in records)


def test_a_model_that_cannot_be_loaded_fails_its_rows(
    served: Served, batch: Callable[..., BatchCommand], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    command = batch(row("a"), row("b"), model=str(tmp_path))
    *records, _ = served.answer(command)
    assert [(r.id, r.code) for r in records if isinstance(r, FailedRecord)] == [("a", "bad_model"), ("b", "bad_model")]
    assert text_of(served.answer(batch(row())), "a"), "other models still work"


def test_a_cancelled_row_leaves_the_batch(served: Served, batch: Callable[..., BatchCommand]) -> None:
    slow = RolloutSpec(max_completion_length=96, diffusion_steps=96, block_length=1, temperature=1.0)
    served.send(batch(row("a", max_tokens=96), row("b", max_tokens=96), rollout=slow))
    while not isinstance(record := served.next(), BlockRecord):
        pass
    served.send(CancelCommand(id="a"))
    found: list[Record] = [record]
    while not isinstance(found[-1], IdleRecord):
        found.append(served.next())
    assert [record.id for record in found if isinstance(record, DoneRecord)] == ["b"]


def test_the_last_used_models_stay(served: Served, batch: Callable[..., BatchCommand], model_root: Path) -> None:
    command = batch(row())
    other = command.model_copy(update={"model": ServedModel(key="other", path=command.model.path)})
    assert served.answer(command)[-1] == IdleRecord(models=["tiny"])
    assert served.answer(other)[-1] == IdleRecord(models=["other"])


def test_it_ends_with_its_parent() -> None:
    served = Served()
    try:
        assert isinstance(served.next(), ReadyRecord)
        assert served.process.stdin is not None
        served.process.stdin.close()
        assert served.process.wait(20) == 0
    finally:
        served.close()
