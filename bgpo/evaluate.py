"""`python -m bgpo.evaluate`: measure a checkpoint the way a run does.

    python -m bgpo.evaluate --model DIR --data test.jsonl --recipe recipe.json [--base DIR] [--json OUT]

The recipe (`bgpo.spec.Recipe`, or a RunSpec's) gives grader, sampler, answers a prompt and seed; with the same data the
numbers equal those of the run's own evaluation of the same weights. A LoRA checkpoint is evaluated as the run did with
the base model's directory as `--base`; without it the merged weights are, whose rounding differs. Judges and the rest
of the operator's part of grading are those of a RunSpec (`graders`); secrets come by the environment (`bgpo.secrets`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pydantic import ValidationError

from bgpo.allocator import keep_freed_memory
from bgpo.errors import BgpoError, SpecError
from bgpo.records import ExitCode, exit_code
from bgpo.rewards import GraderSettings
from bgpo.secrets import take_secrets
from bgpo.spec import Recipe, RunSpec


def main(argv: list[str] | None = None) -> int:
    """Evaluate, print the metrics as JSON, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bgpo.evaluate", description="Evaluate a checkpoint directory.")
    parser.add_argument("--model", required=True, help="checkpoint directory")
    parser.add_argument("--base", help="directory of the base model: evaluate the checkpoint's LoRA adapter over it")
    parser.add_argument("--data", required=True, help="JSONL file")
    parser.add_argument("--recipe", required=True, help="JSON file with the recipe of the run")
    parser.add_argument("--json", help="also write the metrics to this file")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    arguments = parser.parse_args(argv)
    try:
        metrics = _evaluate(arguments)
    except BgpoError as error:
        sys.stderr.write(f"error: {error}\n" + (f"{error.details}\n" if error.details else ""))
        return exit_code(error)
    text = json.dumps(metrics, indent=2)
    sys.stdout.write(text + "\n")
    if arguments.json:
        Path(arguments.json).write_text(text + "\n", "utf-8")
    return ExitCode.FINISHED


def _evaluate(arguments: argparse.Namespace) -> dict[str, float]:
    secrets = take_secrets()
    recipe, settings = read_recipe(Path(arguments.recipe)), read_settings(Path(arguments.recipe))

    import torch  # after the recipe is known to be valid

    from bgpo.models import load_policy
    from bgpo.training.data import load_prompts
    from bgpo.training.evaluation import evaluate
    from bgpo.training.start import weights_dtype

    keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if recipe.method.rollout is None:
        raise SpecError("evaluating answers needs a grader and a rollout", "method.grader")
    dtype = torch.float32 if arguments.base is None else weights_dtype(recipe)
    policy = load_policy(arguments.model, dtype=dtype, device=arguments.device, base=arguments.base)
    length = recipe.method.rollout.max_completion_length
    rows = load_prompts(arguments.data, policy, length, param="data")[: recipe.evaluation.samples]
    return evaluate(policy, rows, recipe, settings=settings, secrets=secrets)


def read_recipe(path: Path) -> Recipe:
    """A recipe from a JSON file; a RunSpec's paths are ignored.

    Raises:
        SpecError: the file cannot be read or does not validate.
    """
    try:
        fields = json.loads(path.read_bytes())
        unknown = sorted(fields.keys() - RunSpec.model_fields.keys())
        if unknown:
            raise SpecError("unknown field", unknown[0])
        recipe = {name: fields[name] for name in Recipe.model_fields if name in fields}
        return Recipe.model_validate_json(json.dumps(recipe))
    except SpecError:
        raise
    except (OSError, ValidationError, ValueError, TypeError, AttributeError) as error:
        raise SpecError(f"cannot use the recipe {path}: {error}") from error


def read_settings(path: Path) -> GraderSettings:
    """The operator's part of grading in the same file; the default where it is a mere recipe. Raises SpecError."""
    try:
        return GraderSettings.model_validate_json(json.dumps(json.loads(path.read_bytes()).get("graders", {})))
    except (OSError, ValueError, AttributeError) as error:
        raise SpecError(f"cannot use the graders of {path}: {error}", "graders") from error


if __name__ == "__main__":
    sys.exit(main())
