"""Run specifications: what is accepted, and which field an error names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from bgpo.errors import SpecError
from bgpo.spec import AlgorithmName, Recipe, Reinforcement, RolloutSpec, RunSpec, Supervised, parse_run_spec

GRADER = {"type": "sudoku", "name": "grid"}
PATHS = {"model": "m", "train_data": "t.jsonl", "output_dir": "out"}


def run_spec(**method: Any) -> dict[str, Any]:
    return {**PATHS, "method": {"type": "reinforcement", "grader": GRADER, **method}}


def supervised(**method: Any) -> dict[str, Any]:
    return {**PATHS, "method": {"type": "supervised", **method}}


def dpo(**method: Any) -> dict[str, Any]:
    return {**PATHS, "method": {"type": "dpo", **method}}


def test_the_defaults_are_the_papers_settings() -> None:
    method = parse_run_spec(run_spec()).method
    assert method.type == "reinforcement"
    assert (method.algorithm, method.batch_size, method.group_size, method.mc_samples) == ("bgpo", 16, 8, 16)
    assert method.rollout.model_dump() == {
        "max_completion_length": 256,
        "diffusion_steps": 128,
        "block_length": 32,
        "temperature": 1.0,
        "remasking": None,
        "threshold": None,
    }
    assert method.optimizer.learning_rate == 5e-7
    assert (method.estimator, method.normalization, method.advantage) == ("importance", "none", "z_score")
    assert method.clamp_log_ratio == 10.0
    assert not method.score_eos_padding
    assert (method.kl_coefficient, method.dynamic_sampling_rounds) == (0.0, 0)
    assert (method.lora, method.activation_checkpointing, method.optimizer.optimizer_type) == (None, False, "adamw")


def test_the_defaults_of_the_other_methods() -> None:
    method = parse_run_spec(supervised()).method
    assert (method.type, method.batch_size, method.optimizer.learning_rate) == ("supervised", 32, 1e-5)
    method = parse_run_spec(dpo()).method
    assert method.type == "dpo"
    assert (method.batch_size, method.mc_samples, method.estimator, method.beta) == (8, 8, "antithetic", 0.1)
    assert method.optimizer.learning_rate == 5e-7
    assert (method.grader, method.rollout, method.lora) == (None, None, None)


def test_the_defaults_of_a_run() -> None:
    spec = parse_run_spec(dpo())
    assert (spec.seed, spec.precision, spec.distributed, spec.device) == (0, "float32", "ddp", "auto")
    shown = {"interval": None, "samples": None, "batch_size": 256, "answers": 1, "at_start": True}
    assert spec.evaluation.model_dump() == shown
    assert spec.checkpointing.model_dump() == {
        "every_steps": None, "keep_last": 2, "keep_best": True, "best_metric": None,
    }  # fmt: skip
    assert spec.early_stopping is None
    assert spec.sinks == []


@pytest.mark.parametrize(
    ("algorithm", "given", "normalization"),
    [("bgpo", None, "none"), ("espo", None, "length"), ("espo", "none", "none"), ("spg", "masked", "masked")],
)
def test_an_algorithm_has_its_own_length_normalization(algorithm: str, given: str | None, normalization: str) -> None:
    method = parse_run_spec(run_spec(algorithm=algorithm, length_normalization=given)).method
    assert isinstance(method, Reinforcement)
    assert method.normalization == normalization


ONLY_FOR = {
    "clip_epsilon": (0.1, ("diffu_grpo", "espo")),
    "prompt_mask_probability": (0.3, ("diffu_grpo",)),
    "upper_bound_power": (2.0, ("spg",)),
    "upper_bound_mixture": (0.1, ("spg",)),
}


@pytest.mark.parametrize("algorithm", get_args(AlgorithmName))
@pytest.mark.parametrize("name", ONLY_FOR)
def test_a_setting_that_the_algorithm_ignores_is_an_error(algorithm: str, name: str) -> None:
    value, algorithms = ONLY_FOR[name]
    spec = run_spec(algorithm=algorithm, **{name: value})
    if algorithm in algorithms:
        assert getattr(parse_run_spec(spec).method, name) == value
    else:
        with pytest.raises(SpecError, match=rf"{name} belongs to .*{algorithms[0]}.*; {algorithm} does not use it"):
            parse_run_spec(spec)


STOPPING = {"early_stopping": {"patience": 2}, "evaluation": {"interval": 5}, "validation_data": "v.jsonl"}


def test_early_stopping_needs_evaluations() -> None:
    spec = parse_run_spec({**dpo(), **STOPPING})
    assert spec.early_stopping is not None
    assert spec.early_stopping.model_dump() == {"patience": 2, "min_delta": 0.0, "warmup_evals": 0, "metric": None}
    for missing, words in (("evaluation", "interval"), ("validation_data", "validation_data")):
        with pytest.raises(SpecError, match=f"early_stopping needs .*{words}"):
            parse_run_spec({**dpo(), **{name: value for name, value in STOPPING.items() if name != missing}})


@pytest.mark.parametrize(
    ("spec", "param"),
    [
        ({**run_spec(), "sead": 1}, "sead"),
        ({**run_spec(), "seed": -1}, "seed"),
        ({**run_spec(), "seed": 1.5}, "seed"),
        ({**run_spec(), "seed": "1"}, "seed"),
        ({**run_spec(), "device": "tpu"}, "device"),
        ({**run_spec(), "precision": "float16"}, "precision"),
        ({**run_spec(), "evaluation": {"interval": 0}}, "evaluation.interval"),
        ({**run_spec(), "checkpointing": {"keep_last": 0}}, "checkpointing.keep_last"),
        ({k: v for k, v in run_spec().items() if k != "model"}, "model"),
        ({**PATHS}, "method"),
        ({**PATHS, "method": {"grader": GRADER}}, "method.type"),
        ({**PATHS, "method": {"type": "ppo"}}, "method.type"),
        (run_spec(learning_rate=1e-6), "method.learning_rate"),
        (run_spec(optimizer={"learning_rte": 1e-6}), "method.optimizer.learning_rte"),
        (run_spec(optimizer={"learning_rate": 0}), "method.optimizer.learning_rate"),
        (run_spec(optimizer={"beta1": 1.0}), "method.optimizer.beta1"),
        (run_spec(grader={"type": "sudoku", "name": "g", "puzzel": "x"}), "method.grader.puzzel"),
        (run_spec(grader={"type": "chess", "name": "g"}), "method.grader.type"),
        (run_spec(grader=None), "method.grader"),
        (run_spec(group_size=1), "method.group_size"),
        (run_spec(mc_samples=True), "method.mc_samples"),
        (run_spec(rollout={"temperature": -0.1}), "method.rollout.temperature"),
        (run_spec(rollout={"max_completion_length": 30, "block_length": 32}), "method.rollout"),
        (run_spec(rollout={"diffusion_steps": 257}), "method.rollout"),
        (run_spec(batch_size=6, num_inner_updates=4), "method"),
        (run_spec(algorithm="ppo"), "method.algorithm"),
        (run_spec(estimator="sobol"), "method.estimator"),
        (run_spec(advantage="z"), "method.advantage"),
        (run_spec(kl_coefficient=-1.0), "method.kl_coefficient"),
        (run_spec(clip_epsilon=1.0, algorithm="espo"), "method.clip_epsilon"),
        (run_spec(clip_epsilon=0.1), "method"),
        (run_spec(upper_bound_power=1.0, algorithm="spg"), "method.upper_bound_power"),
        (run_spec(prompt_mask_probability=1.0, algorithm="diffu_grpo"), "method.prompt_mask_probability"),
        (run_spec(dynamic_sampling_rounds=17), "method.dynamic_sampling_rounds"),
        (run_spec(lora={"rank": 0}), "method.lora.rank"),
        (run_spec(lora={"r": 8}), "method.lora.r"),
        (run_spec(lora={"targets": "mlp"}), "method.lora.targets"),
        (run_spec(lora={"checkpoints": "none"}), "method.lora.checkpoints"),
        (run_spec(activation_checkpointing=1), "method.activation_checkpointing"),
        (run_spec(optimizer={"optimizer_type": "sgd"}), "method.optimizer.optimizer_type"),
        (run_spec(rollout={"threshold": 0.9, "remasking": "random"}), "method.rollout"),
        (run_spec(rollout={"remasking": "high"}), "method.rollout.remasking"),
        ({**run_spec(), "distributed": "fsdp"}, "distributed"),
        ({**run_spec(), "evaluation": {"answers": 0}}, "evaluation.answers"),
        ({**run_spec(), "checkpointing": {"keep_best": 1}}, "checkpointing.keep_best"),
        ({**run_spec(), **STOPPING, "early_stopping": {}}, "early_stopping.patience"),
        ({**run_spec(), **STOPPING, "early_stopping": {"patience": 1, "min": 0}}, "early_stopping.min"),
        ({**run_spec(), "sinks": [{"type": "tensorboard"}, {"type": "comet"}]}, "sinks.1.type"),
        ({**run_spec(), "sinks": [{"type": "mlflow", "uri": "x"}]}, "sinks.0.uri"),
        (dpo(beta=0), "method.beta"),
        (dpo(group_size=8), "method.group_size"),
        (dpo(mc_samples=0), "method.mc_samples"),
        (dpo(grader=GRADER), "method"),
        (dpo(rollout={}), "method"),
        (supervised(group_size=8), "method.group_size"),
        (supervised(beta=0.1), "method.beta"),
        (supervised(grader=GRADER), "method"),
        (supervised(rollout={}), "method"),
    ],
)
def test_an_error_names_the_field_as_it_is_written_in_the_json(spec: dict[str, Any], param: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_run_spec(spec)
    assert caught.value.param == param
    assert caught.value.message
    assert not caught.value.message.startswith("Value error")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"seed": NaN}'])
def test_a_file_that_is_no_specification(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(SpecError):
        parse_run_spec(path)
    with pytest.raises(SpecError, match="cannot read"):
        parse_run_spec(tmp_path / "absent.json")


def test_infinite_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    for number in ("NaN", "Infinity", "1e999"):
        path.write_text(json.dumps(run_spec(optimizer={"learning_rate": 7})).replace("7", number))
        with pytest.raises(SpecError) as caught:
            parse_run_spec(path)
        assert caught.value.param == "method.optimizer.learning_rate"


@pytest.mark.parametrize(
    ("length", "block", "steps", "valid"),
    [(8, 4, 8, True), (8, 8, 1, True), (8, 4, 2, True), (8, 3, 8, False), (8, 4, 3, False), (8, 8, 9, False)],
)
def test_blocks_and_steps_fit_the_canvas(length: int, block: int, steps: int, valid: bool) -> None:
    fields = {"max_completion_length": length, "block_length": block, "diffusion_steps": steps}
    if valid:
        assert RolloutSpec.model_validate(fields).block_length == block
    else:
        with pytest.raises(ValidationError):
            RolloutSpec.model_validate(fields)


def test_a_recipe_is_a_run_without_its_paths() -> None:
    spec = parse_run_spec({**run_spec(max_steps=3), "seed": 5, "evaluation": {"interval": 2}, "threads": 1})
    recipe = spec.recipe()
    assert type(recipe) is Recipe
    assert not set(recipe.model_dump()) & {*PATHS, "threads", "device", "resume_from", "validation_data", "sinks"}
    assert recipe.model_dump() == {name: spec.model_dump()[name] for name in Recipe.model_fields}
    # It survives being stored as JSON.
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert RunSpec.model_validate_json(json.dumps(json.loads(recipe.model_dump_json()) | PATHS)).recipe() == recipe


def test_specifications_do_not_change() -> None:
    spec = parse_run_spec(supervised())
    assert isinstance(spec.method, Supervised)
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 2


@pytest.mark.parametrize(
    ("method", "grading", "words"),
    [
        ("supervised", {"on_error": "zero"}, "grading is about a grader"),
        ("graded", {"max_error_rate": 0.1}, "about rewards of training steps"),
        ("reinforcement", {"on_error": "fail", "max_error_rate": 0.1}, "says nothing beside on_error fail"),
        ("reinforcement", {"max_error_rate": 1.5}, "less than or equal to 1"),
        ("graded", {"on_error": "zero"}, None),
        ("reinforcement", {"on_error": "zero", "max_error_rate": 0.1}, None),
    ],
)
def test_what_becomes_of_grader_errors(method: str, grading: dict[str, Any], words: str | None) -> None:
    grader = {"type": "sudoku", "name": "g"}
    rollout = {"max_completion_length": 8, "block_length": 4, "diffusion_steps": 4}
    methods: dict[str, dict[str, Any]] = {
        "supervised": {"type": "supervised"},
        "graded": {"type": "dpo", "grader": grader, "rollout": rollout},
        "reinforcement": {"type": "reinforcement", "grader": grader},
    }
    fields = {"method": methods[method], "grading": grading, "model": "m", "train_data": "t", "output_dir": "o"}
    if words is None:
        assert parse_run_spec(fields).grading.model_dump(exclude_unset=True) == grading
    else:
        with pytest.raises(SpecError, match=words):
            parse_run_spec(fields)


def test_the_operators_part_of_grading_is_no_part_of_the_recipe() -> None:
    judge = {"base_url": "http://127.0.0.1:1/v1", "allow_private": True}
    method = {"type": "reinforcement", "grader": {"type": "sudoku", "name": "g"}}
    fields = {"method": method, "model": "m", "train_data": "t", "output_dir": "o", "graders": {"judges": {"j": judge}}}
    spec = parse_run_spec(fields)
    assert spec.graders.judges["j"].allow_private
    assert "graders" not in spec.recipe().model_dump()
