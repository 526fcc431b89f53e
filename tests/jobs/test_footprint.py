"""What a job needs of a machine, against sums made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import footprint
from jobs.footprint import Range, Shape

GB = 10**9


def recipe(**method: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", **method}}


@pytest.mark.parametrize(
    ("dtype", "chosen", "checkpoint"),
    [
        ("float32", recipe(), 3 * GB),  # weights and two moments
        ("bfloat16", recipe(), 6 * GB),  # trained and stored in float32
        ("bfloat16", recipe() | {"precision": "bfloat16"}, 3 * GB),
        ("", recipe(optimizer={"optimizer_type": "adafactor"}), int(1.1 * GB)),
        ("float32", recipe(lora={"rank": 8, "checkpoints": "merged"}), int(1.3 * GB)),
        ("float32", recipe(lora={"rank": 8, "checkpoints": "adapter"}), int(0.3 * GB)),
    ],
)
def test_a_first_attempt_has_room_for_two_checkpoints(dtype: str, chosen: dict[str, Any], checkpoint: int) -> None:
    assert footprint.disk_bytes(GB, dtype, chosen, 7, 0) == pytest.approx(7 + 2 * checkpoint, abs=4)


def test_a_resumed_attempt_knows_what_its_checkpoints_weigh() -> None:
    assert footprint.disk_bytes(GB, "float32", recipe(), 7, 1000) == 7 + 3 * 1000


def test_the_size_of_a_model_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "1").write_bytes(b"x" * 100)
    assert footprint.model_size(tmp_path) == (127, "bfloat16")
    (tmp_path / "config.json").write_text("[")
    assert footprint.model_size(tmp_path) == (101, "")


def test_the_shape_is_read_under_the_names_of_both_families(tmp_path: Path) -> None:
    names = (("d_model", "n_layers", "embedding_size"), ("hidden_size", "num_hidden_layers", "vocab_size"))
    for hidden, layers, vocabulary in names:
        (tmp_path / "config.json").write_text(json.dumps({hidden: 64, layers: 3, vocabulary: 500}))
        found = footprint.shape_of(tmp_path)
        assert (found.hidden, found.layers, found.vocabulary) == (64, 3, 500)
    (tmp_path / "config.json").write_text('{"d_model": "wide"}')
    assert footprint.shape_of(tmp_path).hidden == 0


def test_memory_is_the_sum_of_its_parts() -> None:
    """Two sequences of 100 tokens; 2 layers of 8, a vocabulary of 50; 1000 weights."""
    shape = Shape(4000, "float32", hidden=8, layers=2, vocabulary=50)
    kept = 2 * 100 * (2 * 8 * 10 * 4 + 50 * 4)
    plain = recipe(micro_batch=2)

    def low(chosen: dict[str, Any]) -> float:
        found = footprint.memory_bytes(shape, chosen, Range(100, 200))
        assert found is not None
        assert found.low < found.high
        return found.low

    assert low(plain) == 1000 * (4 + 4 + 8) + kept
    assert low(recipe(micro_batch=2, kl_coefficient=0.1)) == 1000 * (4 + 4 + 8 + 4) + kept
    adapter = recipe(micro_batch=2, lora={"rank": 8})
    assert low(adapter) == pytest.approx(1000 * 4 + 100 * (4 + 4 + 8) + kept)
    assert low(adapter | {"precision": "bfloat16"}) == pytest.approx(
        1000 * 2 + 100 * 16 + 2 * 100 * (2 * 8 * 10 * 2 + 50 * 4)
    )
    assert footprint.memory_bytes(Shape(4000, "float32"), plain, Range(100, 200)) is None
