"""A trainer that trains nothing and tells as much as one that does: a step every so often, until a file appears.

    python -I -S talking_trainer.py --until FILE --every SECONDS SPEC.json --record-fd N

A step has the phases, the 24 values and the samples of a reinforcement step, and two lines of log; each tenth has a
validation, too. Standard library only. It stops by itself after an hour.
"""

import argparse
import json
import os
import time

CONFIG = b"{}"
SHA256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
"""Of CONFIG."""
VALUES = 24
SAMPLES = 4
_LONGEST_S = 3600
_LOOK_S = 0.05


class Records:
    """Writes records as `bgpo.records` has them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._seq = descriptor, 0

    def tell(self, type: str, **fields: object) -> None:
        self._seq += 1
        line = json.dumps({"type": type, "seq": self._seq, "time": time.time(), **fields}) + "\n"
        os.write(self._descriptor, line.encode())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("spec")
    parser.add_argument("--record-fd", type=int, required=True)
    parser.add_argument("--until", required=True)
    parser.add_argument("--every", type=float, required=True)
    arguments = parser.parse_args()
    with open(arguments.spec, "rb") as file:
        output = json.load(file)["output_dir"]
    records = Records(arguments.record_fd)
    began, step = time.monotonic(), 0
    while True:
        step += 1
        say(records, step)
        while time.monotonic() < began + step * arguments.every and not os.path.exists(arguments.until):
            time.sleep(_LOOK_S)
        if os.path.exists(arguments.until) or time.monotonic() > began + _LONGEST_S:
            break
    end(records, step, os.path.join(output, "checkpoints", f"step-{step:06d}"))


def say(records: Records, step: int) -> None:
    """One step."""
    for phase in ("rollout", "grading", "training"):
        records.tell("phase", phase=phase, step=step)
    values = {f"value_{number}": step + number / VALUES for number in range(VALUES)} | {"reward_mean": 1 - 1 / step}
    records.tell("metric", step=step, total_steps=100_000, split="train", values=values)
    for index in range(SAMPLES):
        said = {"prompt": "2 + 2", "completion": "4 " * 50, "reward": 1.0, "scores": {"same": 1.0}, "error": None}
        records.tell("sample", **{"step": step, "split": "train", "index": index} | said)
    if step % 10 == 0:
        values = {"reward_mean": 1 - 1 / step, "parse_error_mean": 0.0}
        records.tell("metric", step=step, total_steps=100_000, split="validation", values=values)
    for word in ("rollout", "update"):
        print(f"step {step}: {word} took {step / 1000:.3f} s", flush=True)


def end(records: Records, step: int, folder: str) -> None:
    """The final checkpoint and the end."""
    os.makedirs(folder)
    files = [{"path": "config.json", "bytes": len(CONFIG), "sha256": SHA256, "kind": "config"}]
    manifest = json.dumps({"step": step, "files": files}).encode()
    for name, content in (("config.json", CONFIG), ("manifest.json", manifest)):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
    records.tell("checkpoint", step=step, path=folder, final=True, metrics={"reward_mean": 0.5})
    records.tell("end", status=0)


if __name__ == "__main__":
    main()
