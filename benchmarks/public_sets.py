"""Base and tuned models on the public test files, beside the chance lines.

    python -m benchmarks.public_sets --data ../shared/data --model tiny=examples/models/tiny-llada \
        --model tuned=DIR [--json PATH]

Sets: `sudoku_by_puzzle` (4x4_test_sudoku.csv, 500 puzzles, 8 givens; solutions occur in training, puzzles do not),
`sudoku_by_solution` (sudoku_test_by_solution.csv, 256 puzzles on 88 held-out grids) and `countdown`
(countdown_cd3_test.jsonl, 256 tuples). Before anything is measured, generated training data is checked against them.
The files are read where they lie and never copied.

Each set is answered twice, sampled at temperature 1 and greedily. Cell accuracy counts the empty cells; a constant
answer gets 25 % of them. In the chance rows, every cell (Sudoku) is a digit drawn at random, and the Countdown answer
is a random expression over the three numbers: expected values, computed and not sampled.
"""

from __future__ import annotations

import statistics
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path
from typing import Any

from benchmarks import _report
from bgpo.tasks import countdown, sudoku
from bgpo.tasks.held_out import countdown_key

SETS = {
    "sudoku_by_puzzle": ("4x4_test_sudoku.csv", sudoku),
    "sudoku_by_solution": ("sudoku_test_by_solution.csv", sudoku),
    "countdown": ("countdown_cd3_test.jsonl", countdown),
}
ROLLOUT = {"max_completion_length": 17, "block_length": 17, "temperature": 1.0}
TRAINING_ROWS = 5_000


def main() -> None:
    """Check, evaluate, report."""
    parser = _report.argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the public test files")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=DIR", help="checkpoint to evaluate")
    parser.add_argument("--diffusion-steps", type=int, default=9)
    parser.add_argument("--limit", type=int, help="rows of each set (default all)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    models = dict(_named(text, parser.error) for text in arguments.model)
    tests = {name: task.read_public(arguments.data / file) for name, (file, task) in SETS.items()}
    assert_disjoint(tests)
    rows: list[dict[str, Any]] = []
    for name, items in tests.items():
        items = items[: arguments.limit]
        rows.append({"set": name, "model": "chance", "rows": len(items), **chance(name, items)})
        for label, directory in models.items():
            metrics = _evaluate(directory, name, items, arguments.diffusion_steps, arguments.seed)
            rows.append({"set": name, "model": label, "rows": len(items), **metrics})
    _report.report("Public test sets", rows, arguments.json)


def assert_disjoint(tests: dict[str, list[dict[str, Any]]]) -> None:
    """Stop when generated training data holds a public puzzle, tuple, or a grid of the solution-disjoint file."""
    puzzles = {row["puzzle"] for name in ("sudoku_by_puzzle", "sudoku_by_solution") for row in tests[name]}
    grids = {row["solution"] for row in tests["sudoku_by_solution"]}
    tuples = {countdown_key(row["numbers"], row["target"]) for row in tests["countdown"]}
    made = sudoku.generate(TRAINING_ROWS, 0, "train")
    shared = [row for row in made if row["puzzle"] in puzzles or row["solution"] in grids]
    made = countdown.generate(TRAINING_ROWS, 0, "train")
    shared += [row for row in made if countdown_key(row["numbers"], row["target"]) in tuples]
    if shared:
        raise SystemExit(f"training data overlaps the public test sets: {shared[0]}")


def chance(name: str, items: list[dict[str, Any]]) -> dict[str, float]:
    """Expected metrics of answering at random."""
    if name == "countdown":
        solved = statistics.mean(_lucky_expressions(row["numbers"], row["target"]) for row in items)
        return {"sampled_solved": solved, "greedy_solved": solved}
    solved = statistics.mean(0.25 ** row["puzzle"].count("0") for row in items)
    return {
        "sampled_cell_accuracy": 0.25,
        "sampled_solved": solved,
        "greedy_cell_accuracy": 0.25,
        "greedy_solved": solved,
    }


def _lucky_expressions(numbers: list[int], target: int) -> float:
    """Share of the expressions (a op b) op c and a op (b op c), over all orders and operators, with this value."""
    values: list[Fraction | None] = []
    for a, b, c in permutations([Fraction(n) for n in numbers]):
        for first, second in product("+-*/", repeat=2):
            values.append(_apply(second, _apply(first, a, b), c))
            values.append(_apply(first, a, _apply(second, b, c)))
    return values.count(Fraction(target)) / len(values)


def _apply(operator: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
    if left is None or right is None or (operator == "/" and right == 0):
        return None
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case _:
            return left / right


def _evaluate(directory: Path, name: str, items: list[dict[str, Any]], steps: int, seed: int) -> dict[str, float]:
    from bgpo.models import load_policy
    from bgpo.spec import Recipe
    from bgpo.training.data import Row
    from bgpo.training.evaluation import evaluate

    grader = countdown.grader_spec() if name == "countdown" else sudoku.grader_spec(reference=True)
    recipe = Recipe.model_validate(
        {
            "seed": seed,
            "method": {"type": "reinforcement", "grader": grader, "rollout": {**ROLLOUT, "diffusion_steps": steps}},
        }
    )
    policy = load_policy(directory)
    rows = [Row(item, policy.encode_prompt(item["messages"]), []) for item in items]
    metrics = evaluate(policy, rows, recipe)
    wanted = ("sampled_cell_accuracy", "sampled_solved_rate", "greedy_cell_accuracy", "greedy_solved_rate")
    return {key.removesuffix("_rate"): round(metrics[key], 4) for key in wanted if key in metrics}


def _named(text: str, fail: Any) -> tuple[str, Path]:
    name, _, directory = text.partition("=")
    if not (name and Path(directory).is_dir()):
        fail(f"--model {text}: expected NAME=DIR with an existing checkpoint directory")
    return name, Path(directory)


if __name__ == "__main__":
    main()
