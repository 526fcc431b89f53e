"""Write a task's dataset, convert a published one, or write the fingerprints of the public test sets.

    python -m bgpo.tasks sudoku --split train --rows 20000 --seed 0 --out train.jsonl [--demonstrations --noise 0.65]
    python -m bgpo.tasks countdown --split test --rows 500 --seed 0 --out test.jsonl
    python -m bgpo.tasks sudoku --split train --rows 20000 --prompt instruct --out train.jsonl
    python -m bgpo.tasks {gsm8k|math|code} --input published.jsonl --out train.jsonl
    python -m bgpo.tasks held-out --data ../shared/data

The same arguments give the same bytes, and with `--demonstrations` the puzzles stay those of the seed. The short
prompts are for models that read characters, `--prompt instruct` for models that read instructions. The published
formats are described in `bgpo.tasks.published`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bgpo.errors import InvalidInput
from bgpo.tasks import countdown, held_out, prompts, published, sudoku
from bgpo.tasks.rows import Row, seeded


def _givens(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bgpo.tasks", description="Generate and convert datasets.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("sudoku", "countdown"):
        command = commands.add_parser(name)
        command.add_argument("--split", choices=("train", "test"), required=True)
        command.add_argument("--rows", type=_positive, required=True)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--out", type=Path, required=True, help="JSONL file to write")
        command.add_argument("--demonstrations", action="store_true", help="add the assistant's answer")
        command.add_argument("--prompt", choices=("short", "instruct"), default="short", help="default short")
        command.add_argument("--noise", type=_probability, help="share of wrong demonstrations (default 0)")
    commands.choices["sudoku"].add_argument("--givens", type=_givens, default=(4, 9), help="as 4-9 (default) or 8")
    for name in published.TASKS:
        command = commands.add_parser(name, help="convert a file in the published format")
        command.add_argument("--input", type=Path, required=True, help="JSONL file as published")
        command.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    fingerprints = commands.add_parser("held-out", help="rewrite the fingerprints of the public test files")
    fingerprints.add_argument("--data", type=Path, required=True, help="folder of the public test files")
    fingerprints.add_argument("--out", type=Path, default=held_out.DATA_FILE)
    return parser


def _write_rows(arguments: argparse.Namespace) -> None:
    if arguments.command in published.TASKS:
        rows = published.convert(arguments.command, arguments.input)
    else:
        rows = _made_rows(arguments)
    arguments.out.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


def _made_rows(arguments: argparse.Namespace) -> list[Row]:
    if arguments.command == "sudoku":
        rows = sudoku.generate(arguments.rows, arguments.seed, arguments.split, arguments.givens)
    else:
        rows = countdown.generate(arguments.rows, arguments.seed, arguments.split)
    if arguments.demonstrations:
        demonstrate = sudoku.demonstrate if arguments.command == "sudoku" else countdown.demonstrate
        rng = seeded("demonstrations", arguments.command, arguments.split, arguments.seed)
        rows = [demonstrate(row, rng, arguments.noise or 0.0) for row in rows]
    if arguments.prompt == "instruct":
        rows = [prompts.instruct(arguments.command, row) for row in rows]
    return rows


def main(argv: list[str] | None = None) -> None:
    """Run the command; a wrong value is a usage error with exit status 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if getattr(arguments, "noise", None) is not None and not arguments.demonstrations:
        parser.error("--noise needs --demonstrations")
    try:
        if arguments.command == "held-out":
            arguments.out.write_text(held_out.serialize(held_out.from_public_files(arguments.data)))
        else:
            _write_rows(arguments)
    except InvalidInput as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    sys.stdout.write(f"wrote {arguments.out}\n")


if __name__ == "__main__":
    main()
