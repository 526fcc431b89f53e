"""TensorBoard event files: a directory a run, the recipe as a text panel.

A resumed run writes one more file into its directory and tells TensorBoard to drop the points behind the checkpoint
(`purge_step`), so each step is shown once, as computed last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from bgpo.records import Split
from bgpo.training.sinks._flatten import prefixed


class TensorBoardSink:
    """Writes `<root>/<name>`, or `<name>-2` and so on when that exists already."""

    def __init__(self, root: Path, name: str, recipe: Mapping[str, Any], run_id: str | None, step: int) -> None:
        directory = Path(run_id) if run_id is not None else _unused(root, name)
        self.run_id = str(directory.resolve())
        self._writer = SummaryWriter(directory, purge_step=step + 1 if run_id is not None else None)
        if run_id is None:
            text = "\n".join("    " + line for line in json.dumps(recipe, indent=2).splitlines())  # Markdown code
            self._writer.add_text("recipe", text, 0)

    def log(self, step: int, split: Split, values: Mapping[str, float]) -> None:
        """Write and flush: a killed run must not lose the two minutes that the writer may keep."""
        for name, value in prefixed(split, values).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def _unused(root: Path, name: str) -> Path:
    directory, number = root / name, 1
    while directory.exists():
        number += 1
        directory = root / f"{name}-{number}"
    return directory
