"""A trainer that has nothing to train: says what one of one step says, leaves a checkpoint of one file, and ends.

    python -I -S noop_trainer.py SPEC.json --record-fd N

Standard library only, so that of an attempt's time as little as possible is the trainer's.
"""

import json
import os
import sys
import time

CONFIG = b"{}"
SHA256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
"""Of CONFIG; importing hashlib takes longer than everything else here."""


def main() -> None:
    spec_path, _, descriptor = sys.argv[1:]
    with open(spec_path, "rb") as file:
        folder = os.path.join(json.load(file)["output_dir"], "checkpoints", "step-000001")
    os.makedirs(folder)
    files = [{"path": "config.json", "bytes": len(CONFIG), "sha256": SHA256, "kind": "config"}]
    manifest = json.dumps({"step": 1, "files": files}).encode()
    for name, content in (("config.json", CONFIG), ("manifest.json", manifest)):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
    values = {"reward_mean": 0.5, "loss": 0.1}
    records = [
        {"type": "phase", "phase": "rollout", "step": 1},
        {"type": "metric", "step": 1, "total_steps": 1, "split": "train", "values": values},
        {"type": "checkpoint", "step": 1, "path": folder, "final": True, "metrics": values},
        {"type": "end", "status": 0},
    ]
    for number, record in enumerate(records, start=1):
        line = json.dumps(record | {"seq": number, "time": time.time()}) + "\n"
        os.write(int(descriptor), line.encode())


if __name__ == "__main__":
    main()
