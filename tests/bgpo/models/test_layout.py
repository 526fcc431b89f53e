"""Checkpoint files: what is written is what is read, in one file or in shards, and each defect is named."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bgpo.errors import ModelError
from bgpo.models import Policy, load_policy, save_policy
from bgpo.models.layout import INDEX, SINGLE, load_weights, save_weights, weight_files
from bgpo.models.llada import LLaDAModel
from tests.bgpo.tiny import tiny_policy

HEAD = "model.transformer.ff_out.weight"
EMBEDDING = "model.transformer.wte.weight"


@pytest.fixture
def model() -> LLaDAModel:
    return tiny_policy(seed=4).model


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


def raw(value: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return value.dtype, tuple(value.shape), value.detach().contiguous().view(torch.uint8).numpy().tobytes()


def same_bytes(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return {k: raw(v) for k, v in left.items()} == {k: raw(v) for k, v in right.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_survives_saving_and_loading_bit_by_bit(checkpoint: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    policy = load_policy(checkpoint, dtype=dtype)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).to(dtype))
    save_policy(policy, tmp_path / "copy")
    stored = load_file(tmp_path / "copy" / SINGLE)
    assert same_bytes(stored, policy.model.state_dict())
    again = load_policy(tmp_path / "copy", dtype=dtype)
    assert same_bytes(again.model.state_dict(), policy.model.state_dict())
    assert (again.mask_id, again.end_ids) == (policy.mask_id, policy.end_ids)
    config = json.loads((checkpoint / "config.json").read_text())
    assert json.loads((tmp_path / "copy" / "config.json").read_text()) == config | {
        "torch_dtype": str(dtype).removeprefix("torch.")
    }
    others = {p.name for p in checkpoint.iterdir()} - {"config.json", SINGLE}
    assert {"tokenizer.json", "tokenizer_config.json"} <= others
    for name in others:
        assert (tmp_path / "copy" / name).read_bytes() == (checkpoint / name).read_bytes()


def test_unknown_config_keys_and_tokenizer_files_travel(broken: Path, tmp_path: Path) -> None:
    config = json.loads((broken / "config.json").read_text()) | {"transformers_version": "4.51.2", "use_cache": False}
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "generation_config.json").write_text('{"eos_token_id": 1}')
    save_policy(load_policy(broken), tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "config.json").read_text()) == config
    assert (tmp_path / "copy" / "generation_config.json").read_text() == '{"eos_token_id": 1}'


def test_loading_rounds_to_the_dtype_asked_for(checkpoint: Path) -> None:
    full, half = load_policy(checkpoint).model.state_dict(), load_policy(checkpoint, dtype=torch.bfloat16).model
    for name, value in half.state_dict().items():
        assert raw(value) == raw(full[name].bfloat16())


@pytest.mark.parametrize("shard_bytes", [1, 600, 2500])
def test_shards_hold_every_weight_once(model: LLaDAModel, tmp_path: Path, shard_bytes: int) -> None:
    save_weights(model, tmp_path, shard_bytes)
    assert not (tmp_path / SINGLE).exists()
    index = json.loads((tmp_path / INDEX).read_text())
    state = model.state_dict()
    assert set(index["weight_map"]) == set(state)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in state.values())
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    count = len(files)
    assert files == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert count > 1
    for file in files:
        shard = load_file(tmp_path / file)
        assert {name for name, at in index["weight_map"].items() if at == file} == set(shard)
        assert len(shard) == 1 or sum(value.nbytes for value in shard.values()) <= shard_bytes
    other = tiny_policy(seed=5).model
    load_weights(other, tmp_path)
    assert same_bytes(other.state_dict(), state)


def test_a_file_of_exactly_the_limit_is_not_sharded(model: LLaDAModel, tmp_path: Path) -> None:
    save_weights(model, tmp_path, sum(value.nbytes for value in model.state_dict().values()))
    assert {file: sorted(names) for file, names in weight_files(tmp_path).items()} == {
        SINGLE: sorted(model.state_dict())
    }
    assert not (tmp_path / INDEX).exists()


def test_a_sharded_checkpoint_loads_as_a_policy(checkpoint: Path, broken: Path) -> None:
    whole = load_policy(checkpoint)
    (broken / SINGLE).unlink()
    save_weights(whole.model, broken, 20_000)
    assert len(list(broken.glob("model-*.safetensors"))) > 2
    assert same_bytes(load_policy(broken).model.state_dict(), whole.model.state_dict())


def test_saving_over_a_checkpoint_replaces_its_weights(model: LLaDAModel, tmp_path: Path) -> None:
    """An index or shard left behind would be read instead of the new weights."""
    newer = tiny_policy(seed=6).model
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    for old, new in ((600, 10**9), (10**9, 600), (600, 2500)):
        save_weights(model, tmp_path, old)
        save_weights(newer, tmp_path, new)
        loaded = tiny_policy(seed=7).model
        load_weights(loaded, tmp_path)
        assert same_bytes(loaded.state_dict(), newer.state_dict())
        weights = {p.name for p in tmp_path.glob("*.safetensors")}
        assert weights == {*weight_files(tmp_path), "adapter.safetensors"}, "nobody else's file is touched"


def test_a_policy_can_be_saved_where_it_came_from(broken: Path) -> None:
    policy = load_policy(broken)
    with torch.no_grad():
        next(policy.model.parameters()).add_(1)
    save_policy(policy, broken)
    assert same_bytes(load_policy(broken).model.state_dict(), policy.model.state_dict())


def fails(directory: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        load_policy(directory)


def test_a_place_without_a_config_is_no_checkpoint(tmp_path: Path, broken: Path) -> None:
    fails(tmp_path / "absent", r"absent.*not a checkpoint directory")
    fails(broken / SINGLE, "config.json")
    (broken / "config.json").unlink()
    fails(broken, "config.json")
    (broken / "config.json").mkdir()
    fails(broken, "config.json")


@pytest.mark.parametrize(
    ("content", "says"), [(b"{", "not JSON"), (b"\xff\xfe{}", "not JSON"), (b"[]", "no JSON object"), (b"", "not JSON")]
)
def test_a_config_that_is_no_json_object(broken: Path, content: bytes, says: str) -> None:
    (broken / "config.json").write_bytes(content)
    fails(broken, says)


def test_a_checkpoint_without_weights(broken: Path) -> None:
    (broken / SINGLE).unlink()
    fails(broken, rf"holds neither {SINGLE} nor {INDEX}")


def test_a_pickle_is_never_opened(broken: Path) -> None:
    (broken / SINGLE).unlink()
    # Unpickling this would raise ZeroDivisionError.
    (broken / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    fails(broken, rf"holds neither {SINGLE}")
    (broken / "pytorch_model.bin").rename(broken / SINGLE)
    fails(broken, "cannot be read as safetensors")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[int, int]]:
        return divmod, (1, 0)


def test_damaged_weights(broken: Path) -> None:
    content = (broken / SINGLE).read_bytes()
    for damaged in (content[:-100], content[:20], b"", b"\x00" * 8 + content):
        (broken / SINGLE).write_bytes(damaged)
        fails(broken, rf"{SINGLE} cannot be read as safetensors")


def change_weights(directory: Path, change: dict[str, Tensor | None]) -> None:
    weights = load_file(directory / SINGLE) | change
    save_file({name: value for name, value in weights.items() if value is not None}, directory / SINGLE)


def test_weights_that_do_not_fit_are_named(broken: Path, checkpoint: Path) -> None:
    change_weights(broken, {HEAD: None, "lm_head.weight": torch.zeros(2)})
    fails(broken, rf"missing {HEAD}; unknown lm_head.weight")
    change_weights(broken, {"lm_head.weight": None, HEAD: torch.zeros(320, 31)})
    fails(broken, rf"{HEAD} is \(320, 31\), config.json asks for \(320, 32\)")
    names = list(load_file(broken / SINGLE))
    change_weights(broken, dict.fromkeys(names[1:]))
    fails(broken, rf"and {len(names) - 1 - 5} more")


def shard(directory: Path, policy: Policy) -> dict[str, str]:
    (directory / SINGLE).unlink()
    save_weights(policy.model, directory, 20_000)
    weight_map: dict[str, str] = json.loads((directory / INDEX).read_text())["weight_map"]
    return weight_map


def test_an_index_that_lies_is_caught(broken: Path, policy: Policy) -> None:
    weight_map = shard(broken, policy)

    def write(value: object) -> None:
        (broken / INDEX).write_text(json.dumps(value))

    other = next(file for file in weight_map.values() if file != weight_map[HEAD])
    write({"weight_map": weight_map | {HEAD: other}})
    fails(broken, rf"{other} holds no {HEAD}")
    write({"weight_map": weight_map | {HEAD: "model-00099-of-00099.safetensors"}})
    fails(broken, r"model-00099-of-00099.safetensors cannot be read")
    write({"weight_map": weight_map | {HEAD: f"../broken/{weight_map[HEAD]}"}})
    fails(broken, "not a plain file name")
    write({"weight_map": {name: file for name, file in weight_map.items() if name != EMBEDDING}})
    fails(broken, f"missing {EMBEDDING}")
    for lie in ({}, [], {"weight_map": []}, {"weight_map": {HEAD: 3}}, {"weight_map": None}):
        write(lie)
        fails(broken, "weight_map")
    (broken / INDEX).write_text("{")
    fails(broken, "weight_map")
