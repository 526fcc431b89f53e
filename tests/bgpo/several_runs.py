"""Several runs one after the other in each process of a launch, since importing torch takes longer than any of them.

    accelerate launch --multi_gpu --num_processes 2 tests/bgpo/several_runs.py SPEC.json ...

The records of each run go to SPEC.json.records.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from bgpo.records import RecordWriter
from bgpo.spec import parse_run_spec
from bgpo.training.cluster import join_cluster
from bgpo.training.control import Control
from bgpo.training.loop import Run
from bgpo.training.reporter import Reporter


def main(paths: list[str]) -> None:
    torch.set_num_threads(1)
    cluster = join_cluster("cpu")
    for path in paths:
        spec = parse_run_spec(Path(path))
        descriptor = os.open(f"{path}.records", os.O_WRONLY | os.O_CREAT)
        writer = RecordWriter(descriptor) if cluster.is_main else None
        assert Run(spec, Reporter(writer, spec.method.max_steps), Control(), cluster=cluster).train()
        os.close(descriptor)
    cluster.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
