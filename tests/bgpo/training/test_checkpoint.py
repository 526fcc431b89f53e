"""Checkpoints: complete or absent, described by a manifest that is true, and enough to go on from."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bgpo
from bgpo.errors import DiskFullError, ModelError
from bgpo.models import Policy, add_lora, load_policy
from bgpo.spec import LoraSpec, OptimizerSpec, Recipe
from bgpo.training.checkpoint import load_optimizer, prune, read_state, write_checkpoint
from bgpo.training.optimizer import Optimizer

RECIPE = Recipe.model_validate({"seed": 3, "method": {"type": "supervised"}})


def trained(policy: Policy, steps: int = 2) -> Optimizer:
    optimizer = Optimizer(policy.model, OptimizerSpec(learning_rate=0.01), 10)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in policy.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def tree(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_the_manifest_lists_every_file_truly(policy: Policy, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "checkpoints", 20, policy, trained(policy), RECIPE, {"loss": 0.5})
    assert path == tmp_path / "checkpoints" / "step-000020"
    files = tree(path)
    manifest = json.loads(files.pop("manifest.json"))
    assert manifest["step"] == 20
    assert {f["path"]: (f["bytes"], f["sha256"]) for f in manifest["files"]} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()
    }
    assert len(manifest["files"]) == len(files)
    kinds = {f["path"]: f["kind"] for f in manifest["files"]}
    assert kinds["config.json"] == "config"
    assert kinds["model.safetensors"] == "weights"
    assert kinds["tokenizer.json"] == kinds["tokenizer_config.json"] == "tokenizer"
    assert kinds["trainer_state/optimizer.safetensors"] == kinds["trainer_state/state.json"] == "trainer_state"


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond `size` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("stage", ["weights", "optimizer"])
def test_a_full_disk_leaves_nothing_but_the_earlier_checkpoints(policy: Policy, tmp_path: Path, stage: str) -> None:
    optimizer = trained(policy)
    earlier = write_checkpoint(tmp_path, 1, policy, optimizer, RECIPE, {})
    weights = (earlier / "model.safetensors").stat().st_size
    assert weights < (earlier / "trainer_state" / "optimizer.safetensors").stat().st_size
    before = tree(tmp_path)
    limit = weights if stage == "optimizer" else weights - 1
    with no_file_above(limit), pytest.raises(DiskFullError, match="step 2 does not fit on the disk") as caught:
        write_checkpoint(tmp_path, 2, policy, optimizer, RECIPE, {})
    assert "File too large" in caught.value.message
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_another_error_of_the_disk_is_not_called_full(policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        write_checkpoint(tmp_path / "file", 1, policy, trained(policy), RECIPE, {})


def test_a_checkpoint_holds_policy_optimizer_and_state(policy: Policy, tmp_path: Path) -> None:
    optimizer = trained(policy)
    path = write_checkpoint(tmp_path, 2, policy, optimizer, RECIPE, {"loss": 0.5})
    loaded = load_policy(path)
    for name, value in policy.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    again = Optimizer(loaded.model, OptimizerSpec(learning_rate=0.01), 10)
    load_optimizer(path, again)
    left, right = optimizer.state_tensors(), again.state_tensors()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) and left[key].dtype == right[key].dtype for key in left)
    state = read_state(path)
    assert (state["step"], state["metrics"]) == (2, {"loss": 0.5})
    assert Recipe.model_validate_json(json.dumps(state["recipe"])) == RECIPE
    assert state["versions"]["bgpo"] == bgpo.__version__


def test_only_complete_checkpoints_have_a_name(policy: Policy, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, policy, trained(policy), RECIPE, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_the_leftovers_of_a_crash_are_replaced(policy: Policy, tmp_path: Path) -> None:
    """Of a crash while writing (.tmp), and of a run that went on from an earlier step."""
    for name in ("step-000005.tmp", "step-000005"):
        (tmp_path / name / "trainer_state").mkdir(parents=True)
        (tmp_path / name / "model-00001-of-00002.safetensors").write_bytes(b"half")
        (tmp_path / name / "trainer_state" / "stray").write_bytes(b"x")
    optimizer = trained(policy)
    path = write_checkpoint(tmp_path, 5, policy, optimizer, RECIPE, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000005"]
    clean = write_checkpoint(tmp_path / "clean", 5, policy, optimizer, RECIPE, {})
    assert tree(path) == tree(clean)


def test_writing_is_deterministic(policy: Policy, tmp_path: Path) -> None:
    """The same state gives the same bytes, so checksums can be compared between runs."""
    optimizer = trained(policy)
    first = write_checkpoint(tmp_path / "a", 3, policy, optimizer, RECIPE, {})
    second = write_checkpoint(tmp_path / "b", 3, policy, optimizer, RECIPE, {})
    assert tree(first) == tree(second)


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    def names() -> set[str]:
        return {p.name for p in tmp_path.iterdir()} - {"step-000011.tmp", "other"}

    steps = {"step-000002", "step-000009", "step-000010", "step-999999", "step-1000000"}
    for name in (*steps, "step-000011.tmp", "other"):
        (tmp_path / name).mkdir()
    prune(tmp_path, 5)
    assert names() == steps
    prune(tmp_path, 3)
    assert names() == {"step-000010", "step-999999", "step-1000000"}
    prune(tmp_path, 1)
    assert names() == {"step-1000000"}
    assert len(list(tmp_path.iterdir())) == 3, "what is no complete checkpoint is not touched"


def test_pruning_keeps_the_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        (tmp_path / f"step-{step:06d}").mkdir()
    prune(tmp_path, 2, best_step=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000004", "step-000005"]
    prune(tmp_path, 2, best_step=5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000004", "step-000005"]


def test_state_in_slices_is_the_whole_state(policy: Policy, tmp_path: Path) -> None:
    """As three processes of a sharded run would write it: the moments cut along the first dimension."""
    optimizer = trained(policy)
    path = write_checkpoint(tmp_path, 2, policy, optimizer, RECIPE, {}, {"best": {"metric": "loss"}})
    assert read_state(path)["best"] == {"metric": "loss"}
    state = path / "trainer_state"
    whole = load_file(state / "optimizer.safetensors")
    (state / "optimizer.safetensors").unlink()
    for rank in range(3):
        parts = {}
        for name, value in whole.items():
            pieces = value.chunk(3) if name.startswith("exp_avg") else (value,) * 3
            if rank < len(pieces):
                parts[name] = pieces[rank].contiguous()
        save_file(parts, state / f"optimizer-{rank + 1:05d}-of-00003.safetensors")
    again = Optimizer(policy.model, OptimizerSpec(learning_rate=0.01), 10)
    load_optimizer(path, again)
    assert all(torch.equal(value, whole[name]) for name, value in again.state_tensors().items())
    (state / "optimizer-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match="incomplete"):
        load_optimizer(path, again)


def test_the_state_of_other_parameters_is_refused(policy: Policy, checkpoint: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 2, policy, trained(policy), RECIPE, {})
    adapted = load_policy(checkpoint)
    add_lora(adapted, LoraSpec(rank=2))
    with pytest.raises(ModelError, match="is not trained here") as caught:
        load_optimizer(path, Optimizer(adapted.model, OptimizerSpec(), 10))
    assert caught.value.param == "resume_from"


def test_a_checkpoint_without_trainer_state_cannot_be_resumed(checkpoint: Path, policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="trainer state") as caught:
        read_state(checkpoint)
    assert caught.value.param == "resume_from"
    optimizer = trained(policy)
    path = write_checkpoint(tmp_path, 1, policy, optimizer, RECIPE, {})
    (path / "trainer_state" / "state.json").write_text("{")
    with pytest.raises(ModelError, match="trainer state"):
        read_state(path)
    file = path / "trainer_state" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="optimizer state"):
        load_optimizer(path, optimizer)
    file.unlink()
    with pytest.raises(ModelError, match="optimizer state"):
        load_optimizer(path, optimizer)
