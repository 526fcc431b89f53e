"""From request bodies to recipes, and what is said of bodies that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bgpo.spec import Dpo, EarlyStoppingSpec, GradingSpec, LoraSpec, Recipe, Reinforcement, Supervised
from jobs.errors import InvalidRequest
from jobs.wire.base import explain
from jobs.wire.recipe import base_learning_rate, build
from jobs.wire.request import (
    CreateJob,
    DpoHyperparameters,
    ReinforcementHyperparameters,
    SupervisedHyperparameters,
)

GRADER = {"type": "string_check", "name": "g", "input": "{{ sample.output_text }}", "reference": "a", "operation": "eq"}


def reinforcement(rl: dict[str, Any] | None = None, **hyperparameters: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": "tiny",
        "training_file": "file-1",
        "method": {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": hyperparameters}},
    }
    return body | ({"rl": rl} if rl is not None else {})


def supervised(grader: dict[str, Any] | None = None, **hyperparameters: Any) -> dict[str, Any]:
    block = {"hyperparameters": hyperparameters} | ({"grader": grader} if grader else {})
    return {"model": "tiny", "training_file": "file-1", "method": {"type": "supervised", "supervised": block}}


def dpo(
    grader: dict[str, Any] | None = None, rl: dict[str, Any] | None = None, **hyperparameters: Any
) -> dict[str, Any]:
    block = {"hyperparameters": hyperparameters} | ({"grader": grader} if grader else {})
    body = {"model": "tiny", "training_file": "file-1", "method": {"type": "dpo", "dpo": block}}
    return body | ({"rl": rl} if rl is not None else {})


def made(body: dict[str, Any], *, rows: int = 100, validation: int | None = 50) -> tuple[Recipe, dict[str, Any]]:
    recipe, method = build(CreateJob.model_validate(body), 7, rows, validation)
    return recipe, method[method["type"]]["hyperparameters"]


def refused(body: dict[str, Any], *, validation: int | None = 50) -> tuple[str, str | None, str]:
    """Message, param and code, however deep the fault is found."""
    try:
        made(body, validation=validation)
    except ValidationError as error:
        return explain(error.errors(include_url=False)[0], body)
    except InvalidRequest as error:
        return error.message, error.param, error.code
    pytest.fail("not refused")


ROLLOUT = {
    "max_completion_length": 48, "diffusion_steps": 24, "block_length": 16, "temperature": 0.7, "remasking": "random",
}  # fmt: skip
EVERY_METHOD: dict[str, Any] = {
    "max_steps": 12, "micro_batch": 5, "activation_checkpointing": True,
    "lora": {"rank": 4, "alpha": 8.0, "targets": "attention", "checkpoints": "adapter"},
    "optimizer_type": "adafactor", "learning_rate": 1e-4, "decay": "linear", "warmup_steps": 3, "weight_decay": 0.1,
    "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6, "max_grad_norm": 0.5, "precision": "bfloat16", "eval_interval": 4,
    "eval_samples": 20,
}  # fmt: skip


class TestResolving:
    def test_every_auto_equals_leaving_out(self) -> None:
        names = set(ReinforcementHyperparameters.model_fields) - {"reasoning_effort"}
        assert made(reinforcement(**dict.fromkeys(names, "auto"))) == made(reinforcement())

    def test_defaults_are_those_of_the_spec(self) -> None:
        recipe, _ = made(reinforcement(max_steps=10, learning_rate_multiplier=1))
        assert isinstance(recipe.method, Reinforcement)
        default = Reinforcement.model_validate({"grader": GRADER, "max_steps": 10})
        assert recipe.method == default
        assert recipe.seed == 7

    @pytest.mark.parametrize(
        ("body", "fields", "given", "one_sided"),
        [
            (
                reinforcement, ReinforcementHyperparameters,
                {
                    "batch_size": 6, "group_size": 3, "num_inner_updates": 2, "mc_samples": 4,
                    "estimator": "importance", "advantage": "leave_one_out", "length_normalization": "masked",
                    "clamp_log_ratio": 4.0, "kl_coefficient": 0.01, "dynamic_sampling_rounds": 2,
                    "score_eos_padding": True, **ROLLOUT,
                },
                # They belong to one algorithm, or not beside another one of these.
                {"clip_epsilon", "prompt_mask_probability", "upper_bound_power", "upper_bound_mixture", "threshold"},
            ),
            (supervised, SupervisedHyperparameters, {"batch_size": 7, **ROLLOUT}, {"threshold"}),
            (
                dpo, DpoHyperparameters,
                {"batch_size": 5, "beta": 0.2, "mc_samples": 3, "estimator": "stratified", **ROLLOUT}, {"threshold"},
            ),
        ],
    )  # fmt: skip
    def test_every_hyperparameter_arrives(
        self, body: Any, fields: Any, given: dict[str, Any], one_sided: set[str]
    ) -> None:
        given = given | EVERY_METHOD
        named = {"grader": GRADER} if body is not reinforcement else {}
        recipe, shown = made(body(**named, **given))
        method = recipe.method
        assert method.rollout is not None
        flat = method.model_dump() | method.rollout.model_dump() | method.optimizer.model_dump()
        flat |= {"precision": recipe.precision}
        flat |= {"eval_interval": recipe.evaluation.interval, "eval_samples": recipe.evaluation.samples}
        own = {"n_epochs", "learning_rate_multiplier", "compute_multiplier", "reasoning_effort"}
        assert set(fields.model_fields) - own <= set(flat)
        assert set(fields.model_fields) - own - one_sided == set(given)
        assert {name: flat[name] for name in given} == given
        assert {name: shown[name] for name in given} == given
        assert shown["learning_rate_multiplier"] == pytest.approx(1e-4 / base_learning_rate(method.type))
        if isinstance(method, Supervised | Dpo):
            assert method.max_completion_length == method.rollout.max_completion_length == 48

    @pytest.mark.parametrize(
        ("algorithm", "given"),
        [
            ("bgpo", {}),
            ("elbo_ratio", {}),
            ("taylor_only", {}),
            ("jensen_only", {}),
            ("diffu_grpo", {"clip_epsilon": 0.1, "prompt_mask_probability": 0.3}),
            ("espo", {"clip_epsilon": 0.3}),
            ("spg", {"upper_bound_power": 2.0, "upper_bound_mixture": 0.25}),
        ],
    )
    def test_every_algorithm_arrives_with_what_belongs_to_it(self, algorithm: str, given: dict[str, Any]) -> None:
        body = reinforcement(**given)
        body["method"]["reinforcement"]["algorithm"] = algorithm
        recipe, method = build(CreateJob.model_validate(body), 7, 100, None)
        assert isinstance(recipe.method, Reinforcement)
        assert recipe.method.algorithm == method["reinforcement"]["algorithm"] == algorithm
        shown = method["reinforcement"]["hyperparameters"]
        assert {name: getattr(recipe.method, name) for name in given} == given == {name: shown[name] for name in given}
        assert shown["length_normalization"] == ("length" if algorithm == "espo" else "none")

    def test_adapters(self) -> None:
        recipe, shown = made(reinforcement(lora={"rank": 4}))
        assert recipe.method.lora == LoraSpec(rank=4)
        assert shown["lora"] == {"rank": 4, "alpha": 32.0, "targets": "all", "checkpoints": "merged"}
        assert made(reinforcement(lora="auto")) == made(reinforcement(lora=None)) == made(reinforcement())

    def test_threshold_arrives(self) -> None:
        recipe, shown = made(reinforcement(threshold=0.9))  # not together with random remasking
        assert recipe.method.rollout is not None
        assert recipe.method.rollout.threshold == shown["threshold"] == 0.9

    @pytest.mark.parametrize(
        ("given", "steps", "epochs"),
        [
            ({"n_epochs": 3, "batch_size": 16}, 19, 4),  # 300 rows in batches of 16, rounded up
            ({"batch_size": 16}, 100, 16),  # auto: at least 100 steps
            ({"batch_size": 1}, 100, 1),
            ({"max_steps": 5, "batch_size": 10}, 5, 1),
        ],
    )
    def test_length_of_the_job(self, given: dict[str, int], steps: int, epochs: int) -> None:
        recipe, shown = made(reinforcement(**given))
        assert (recipe.method.max_steps, shown["n_epochs"]) == (steps, epochs)

    def test_multiplier_scales_the_base_rate(self) -> None:
        recipe, shown = made(reinforcement(learning_rate_multiplier=4))
        assert recipe.method.optimizer.learning_rate == pytest.approx(4 * base_learning_rate("reinforcement"))
        assert shown["learning_rate_multiplier"] == 4
        assert made(supervised(warmup_steps=1))[0].method.optimizer.learning_rate == base_learning_rate("supervised")

    @pytest.mark.parametrize("length", [1, 16, 17, 48, 64, 256, 1000])
    def test_sampling_follows_the_response_length(self, length: int) -> None:
        rollout = made(reinforcement(max_completion_length=length))[0].method.rollout
        assert rollout is not None
        assert rollout.max_completion_length == length

    def test_extensions(self) -> None:
        stopping = {"patience": 2, "min_delta": 0.1, "warmup_evals": 1, "metric": "loss"}
        rl = {
            "eval": {"interval": 3, "samples": 99, "batch_size": 7, "answers": 4, "at_start": False},
            "checkpointing": {
                "every_steps": 2,
                "keep_last": 9,
                "keep_best": False,
                "best_metric": "greedy_reward_mean",
            },
            "early_stopping": stopping,
            "on_grader_error": "zero",
            "max_error_rate": 0.25,
            "sample_log": 1,
        }
        recipe, shown = made(reinforcement(rl=rl, max_steps=30))
        assert recipe.evaluation.model_dump() == rl["eval"]
        assert recipe.checkpointing.model_dump() == rl["checkpointing"]
        assert recipe.early_stopping == EarlyStoppingSpec.model_validate(stopping)
        assert recipe.sample_log == 1
        assert recipe.grading == GradingSpec(on_error="zero", max_error_rate=0.25)
        assert (shown["eval_interval"], shown["eval_samples"]) == (3, 50)
        recipe, shown = made(reinforcement(max_steps=30), validation=None)
        assert (recipe.checkpointing.every_steps, shown["eval_interval"]) == (6, None)
        assert recipe.early_stopping is None
        assert recipe.grading == GradingSpec(on_error="drop", max_error_rate=0.5)
        assert made(dpo(grader=GRADER, rl={"on_grader_error": "fail"}))[0].grading.on_error == "fail"
        # With the interval among the hyperparameters, and the least that can be said.
        recipe, _ = made(dpo(eval_interval=5, rl={"early_stopping": {"patience": 1}}))
        assert recipe.early_stopping == EarlyStoppingSpec(patience=1)

    def test_dpo(self) -> None:
        recipe, shown = made(dpo(beta="auto", batch_size="auto", learning_rate_multiplier="auto", n_epochs=2))
        method = recipe.method
        assert method == Dpo(max_steps=25)  # 200 rows in batches of 8
        assert (shown["beta"], shown["batch_size"], shown["n_epochs"]) == (0.1, 8, 2)
        assert shown["learning_rate_multiplier"] == 1
        assert "diffusion_steps" not in shown
        assert (
            made({**dpo(n_epochs=2), "method": {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2}}}})[0]
            == recipe
        )
        assert made({**dpo(), "method": {"type": "dpo"}}) == made(dpo())
        recipe, shown = made(dpo(grader=GRADER, max_completion_length=64, temperature=0.5))
        assert recipe.method.rollout is not None
        assert (recipe.method.rollout.temperature, shown["diffusion_steps"]) == (0.5, 32)

    def test_supervised(self) -> None:
        recipe, shown = made(supervised(max_steps=9, max_completion_length=64))
        assert isinstance(recipe.method, Supervised)
        assert recipe.method.rollout is None
        assert "diffusion_steps" not in shown
        recipe, shown = made(supervised(grader=GRADER, max_completion_length=64, temperature=0.5))
        assert recipe.method.rollout is not None
        assert (recipe.method.rollout.temperature, shown["diffusion_steps"]) == (0.5, 32)

    def test_without_method_it_is_supervised(self) -> None:
        body = {"model": "tiny", "training_file": "file-1", "hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}
        recipe, _ = made(body)
        assert isinstance(recipe.method, Supervised)
        assert recipe.method.max_steps == 7  # 200 rows in batches of 32

    def test_the_two_lists_differ_where_methods_do(self) -> None:
        assert "group_size" not in SupervisedHyperparameters.model_fields


HYPER = "method.reinforcement.hyperparameters"


@pytest.mark.parametrize(
    ("body", "param", "code", "words"),
    [
        (reinforcement(foo=1), f"{HYPER}.foo", "unknown_parameter", "foo"),
        (reinforcement(kl_beta=0.1), f"{HYPER}.kl_beta", "unknown_parameter", "kl_coefficient"),
        (reinforcement(lora={"r": 8}), f"{HYPER}.lora.r", "unknown_parameter", "lora.r"),
        (reinforcement(lora={"rank": 0}), f"{HYPER}.lora.rank", "invalid_value", "1"),
        (reinforcement(lora=True), f"{HYPER}.lora", "invalid_value", "LoraSpec"),
        (reinforcement(clip_epsilon=0.1), f"{HYPER}.clip_epsilon", "invalid_value", "diffu_grpo and espo"),
        (reinforcement(distributed="ddp"), f"{HYPER}.distributed", "unknown_parameter", "distributed"),
        (reinforcement() | {"distributed": "fsdp2"}, "distributed", "unknown_parameter", "distributed"),
        (reinforcement(rl={"distributed": "ddp"}), "rl.distributed", "unknown_parameter", "distributed"),
        (reinforcement(rl={"sinks": []}), "rl.sinks", "unknown_parameter", "sinks"),
        (reinforcement(rl={"dry_run": True}), "rl.dry_run", "unsupported_parameter", "not supported yet"),
        (reinforcement(rl={"priority": 1}), "rl.priority", "invalid_value", "'low', 'normal' or 'high'"),
        (reinforcement(rl={"resources": {"gpus": 0}}), "rl.resources.gpus", "invalid_value", "1"),
        (reinforcement(rl={"resources": {"gpu": 1}}), "rl.resources.gpu", "unknown_parameter", "gpu"),
        (reinforcement(rl={"resources": {"gpu_type": "H200"}}), "rl.resources.gpu_type", "invalid_value", "pattern"),
        (reinforcement(rl={"resources": {"max_runtime_s": 0}}), "rl.resources.max_runtime_s", "invalid_value", "0"),
        (reinforcement(compute_multiplier=2), f"{HYPER}.compute_multiplier", "unsupported_parameter", "not supported"),
        (reinforcement(group_size="8"), f"{HYPER}.group_size", "invalid_value", "integer"),
        (reinforcement(group_size=1), f"{HYPER}.group_size", "invalid_value", "greater than or equal to 2"),
        (reinforcement(n_epochs=51), f"{HYPER}.n_epochs", "invalid_value", "50"),
        (reinforcement(temperature=float("nan")), f"{HYPER}.temperature", "invalid_value", "finite"),
        (reinforcement(estimator="x"), f"{HYPER}.estimator", "invalid_value", "exact_count"),
        (reinforcement(n_epochs=1, max_steps=2), f"{HYPER}.n_epochs", "invalid_value", "max_steps"),
        (
            reinforcement(learning_rate=1e-5, learning_rate_multiplier=2.0),
            f"{HYPER}.learning_rate_multiplier", "invalid_value", "not both",
        ),
        (
            reinforcement(max_completion_length=40, block_length=16),
            f"{HYPER}.block_length", "invalid_value", "divide",
        ),
        (reinforcement(num_inner_updates=3), f"{HYPER}.num_inner_updates", "invalid_value", "divide batch_size"),
        (reinforcement(eval_interval=1, rl={"eval": {"interval": 1}}), f"{HYPER}.eval_interval", "invalid_value", ""),
        (reinforcement(rl={"base_model": {}}), "rl.base_model", "unsupported_parameter", "name it as model"),
        (reinforcement(rl={"bugdet": {}}), "rl.bugdet", "unknown_parameter", "bugdet"),
        (reinforcement() | {"modle": "x"}, "modle", "unknown_parameter", "modle"),
        ({"training_file": "file-1"}, "model", "missing_required_parameter", "required"),
        (reinforcement() | {"suffix": ""}, "suffix", "invalid_value", "1"),
        (reinforcement() | {"seed": 2**31}, "seed", "invalid_value", "2147483647"),
        (reinforcement() | {"metadata": {"k": "v" * 513}}, "metadata.k", "invalid_value", "512"),
        (reinforcement() | {"metadata": {str(i): "" for i in range(17)}}, "metadata", "invalid_value", "16"),
        (reinforcement() | {"suffix": "a\x00b"}, None, "invalid_value", "NUL"),
        (reinforcement() | {"integrations": [{"type": "wandb"}]}, "integrations", "unsupported_parameter", "supported"),
        (
            reinforcement(rl={"early_stopping": {}}),
            "rl.early_stopping.patience", "missing_required_parameter", "required",
        ),
        (
            reinforcement(rl={"early_stopping": {"patience": 1, "minimum": 0}}),
            "rl.early_stopping.minimum", "unknown_parameter", "minimum",
        ),
        (reinforcement(rl={"early_stopping": {"patience": 1}}), "rl.early_stopping", "invalid_value", "eval_interval"),
        (reinforcement(rl={"checkpointing": {"best": 1}}), "rl.checkpointing.best", "unknown_parameter", "best"),
        (supervised() | {"rl": {"on_grader_error": "zero"}}, "rl.on_grader_error", "invalid_value", "grader"),
        (reinforcement(rl={"on_grader_error": "skip"}), "rl.on_grader_error", "invalid_value", "'zero' or 'fail'"),
        (reinforcement(rl={"max_error_rate": 1.5}), "rl.max_error_rate", "invalid_value", "1"),
        (dpo(grader=GRADER, rl={"max_error_rate": 0.1}), "rl.max_error_rate", "invalid_value", "dpo has not"),
        (
            reinforcement(rl={"on_grader_error": "fail", "max_error_rate": 0.1}),
            "rl.max_error_rate", "invalid_value", "one error",
        ),
        (supervised() | {"rl": {"eval": {"answers": 2}}}, "rl.eval.answers", "invalid_value", "grader"),
        (dpo(temperature=1.0), "method.dpo.hyperparameters.temperature", "invalid_value", "method.dpo.grader"),
        (dpo(group_size=4), "method.dpo.hyperparameters.group_size", "unknown_parameter", "group_size"),
        (dpo(beta=0), "method.dpo.hyperparameters.beta", "invalid_value", "greater than 0"),
        (dpo(lora={"targets": "head"}), "method.dpo.hyperparameters.lora.targets", "invalid_value", "attention"),
        (dpo(grader={**GRADER, "operation": "is"}), "method.dpo.grader.operation", "invalid_value", "eq"),
        (dpo() | {"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "invalid_value", "belong"),
        (reinforcement() | {"method": {"type": "ppo"}}, "method.type", "invalid_value", "reinforcement"),
        (
            reinforcement() | {"method": {"type": "reinforcement"}},
            "method.reinforcement", "missing_required_parameter", "required",
        ),
        (
            reinforcement() | {"method": {"type": "supervised", "reinforcement": {"grader": GRADER}}},
            "method.reinforcement", "invalid_value", "does not belong",
        ),
        (reinforcement() | {"hyperparameters": {"n_epochs": 1}}, "hyperparameters", "invalid_value", "without method"),
        (supervised(temperature=1.0), "method.supervised.hyperparameters.temperature", "invalid_value", "grader"),
        (supervised(group_size=4), "method.supervised.hyperparameters.group_size", "unknown_parameter", "group_size"),
    ],
)  # fmt: skip
def test_faults(body: dict[str, Any], param: str | None, code: str, words: str) -> None:
    message, found_param, found_code = refused(body)
    assert (found_param, found_code) == (param, code)
    assert words in message


@pytest.mark.parametrize(
    ("grader", "param"),
    [
        (GRADER | {"operation": "neq"}, "operation"),
        (GRADER | {"input": "{{ nope }}"}, "input"),
        ({"type": "perl", "source": "x"}, "type"),
        ({"name": "x"}, "type"),
        ({"type": "multi", "name": "m", "graders": {"a": GRADER}, "calculate_output": "a +"}, "calculate_output"),
        ({"type": "multi", "name": "m", "graders": {"a": {**GRADER, "x": 1}}, "calculate_output": "a"}, "graders.a.x"),
    ],
)
def test_graders_name_the_field(grader: dict[str, Any], param: str) -> None:
    body = reinforcement()
    body["method"]["reinforcement"]["grader"] = grader
    assert refused(body)[1] == f"method.reinforcement.grader.{param}"


def test_evaluation_settings_need_a_validation_file() -> None:
    assert refused(reinforcement(eval_samples=3), validation=None)[1] == f"{HYPER}.eval_samples"
    assert refused(reinforcement(rl={"eval": {"interval": 3}}), validation=None)[1] == "rl.eval.interval"
    for name, rl in (
        ("rl.early_stopping", {"early_stopping": {"patience": 1}}),
        ("rl.checkpointing.best_metric", {"checkpointing": {"best_metric": "loss"}}),
        ("rl.eval.answers", {"eval": {"answers": 2}}),
        ("rl.eval.at_start", {"eval": {"at_start": False}}),
    ):
        assert refused(reinforcement(rl=rl), validation=None)[1] == name
