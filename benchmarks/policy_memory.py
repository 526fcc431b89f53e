"""Memory of one policy update against n_t: BGPO is flat, the ELBO-ratio objective (VRPO-OL) linear (paper, Figure 1).

    python -m benchmarks.policy_memory [--json PATH] [--n-t 1 2 4 8 16 64]

One response, one update, each measurement in a fresh process. `saved_bytes` is the peak of what autograd holds for
the backward pass (counted with saved-tensor hooks, parameters left out); `peak_rss_bytes` the process's high-water
mark during the update; `ratio` compares saved bytes with n_t = 2 of the same objective. The number of masked tokens
follows one fixed schedule (all, then half, and again), so that what is compared is the objective and not the luck of
the draw; n_t = 1 has only its first entry.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

from benchmarks import _report

PROMPT, RESPONSE, WIDTH, LAYERS, VOCABULARY = 128, 128, 256, 6, 8192


def main() -> None:
    """Measure every objective and n_t, report."""
    parser = _report.argument_parser(__doc__)
    parser.add_argument("--n-t", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64], help="Monte Carlo samples")
    parser.add_argument("--one", nargs="+", metavar="OBJECTIVE N_T [SEED]", help="measure one case, print it as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write(json.dumps(measure(arguments.one[0], *map(int, arguments.one[1:]))) + "\n")
        return
    rows: list[dict[str, Any]] = []
    for objective in ("bgpo", "elbo_ratio"):
        for n_t in arguments.n_t:
            command = [sys.executable, "-m", "benchmarks.policy_memory", "--one", objective, str(n_t)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(result.stdout))
        reference = next((row["saved_bytes"] for row in rows if (row["objective"], row["n_t"]) == (objective, 2)), None)
        for row in rows:
            if row["objective"] == objective:
                row["ratio"] = round(row["saved_bytes"] / reference, 4) if reference else None
    _report.report("Policy update memory", rows, arguments.json)


def measure(objective: str, n_t: int, seed: int = 0) -> dict[str, Any]:
    """One update of one response, drawn from `seed`, in this process."""
    import torch

    from bgpo.diffusion.elbo import build_canvases
    from bgpo.spec import Reinforcement
    from bgpo.training.policy_gradient import accumulate_gradient
    from bgpo.training.scored import Scored

    torch.set_num_threads(1)
    policy = random_policy()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY - 64, (PROMPT + RESPONSE,), generator=generator).tolist()
    canvases = build_canvases([tokens[:PROMPT]], [tokens[PROMPT:]], policy.end_ids[0], "cpu")
    counts = [RESPONSE if j % 2 == 0 else RESPONSE // 2 for j in range(n_t)]
    masks = torch.stack([torch.arange(RESPONSE) < count for count in counts])[None]
    weights = torch.tensor([[RESPONSE / count for count in counts]])
    method = Reinforcement.model_validate(
        {
            "algorithm": objective,
            "grader": {"type": "sudoku", "name": "unused"},
            "mc_samples": n_t,
            "micro_batch": 1,
        }
    )
    scored = Scored(canvases, torch.tensor([1.0]), masks, weights)
    _reset_high_water_mark()
    counter = SavedBytes(policy.model)
    start = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, counter.unpack):
        accumulate_gradient(policy, scored, method, 1)
    seconds = time.perf_counter() - start
    return {
        "objective": objective,
        "n_t": n_t,
        "saved_bytes": counter.peak,
        "peak_rss_bytes": _high_water_mark(),
        "seconds": round(seconds, 3),
    }


class SavedBytes:
    """Counts the bytes that autograd holds, each storage once, parameters not at all."""

    def __init__(self, model: Any) -> None:
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._holders: dict[int, int] = {}
        self._bytes = 0
        self.peak = 0

    def pack(self, tensor: Any) -> Any:
        """Hook: autograd saves a tensor."""
        storage = tensor.untyped_storage()
        pointer, size = storage.data_ptr(), storage.nbytes()
        if pointer in self._parameters:
            return _Saved(tensor)
        if pointer not in self._holders:
            self._bytes += size
            self.peak = max(self.peak, self._bytes)
        self._holders[pointer] = self._holders.get(pointer, 0) + 1
        saved = _Saved(tensor)
        weakref.finalize(saved, self._release, pointer, size)
        return saved

    def unpack(self, saved: Any) -> Any:
        """Hook: backward reads it."""
        return saved.tensor

    def _release(self, pointer: int, size: int) -> None:
        self._holders[pointer] -= 1
        if not self._holders[pointer]:
            del self._holders[pointer]
            self._bytes -= size


class _Saved:
    """Holds a tensor for backward; its end is the tensor's release."""

    def __init__(self, tensor: Any) -> None:
        # A tensor that is an output of its own node must not keep that node alive.
        self.tensor = tensor.detach()


def random_policy() -> Any:
    """A random model with a vocabulary large enough for logits to matter."""
    import torch

    from bgpo.models import Policy
    from bgpo.models.llada import LLaDAConfig, LLaDAModel
    from bgpo.models.scratch import byte_tokenizer

    config = LLaDAConfig(
        d_model=WIDTH,
        n_heads=4,
        n_kv_heads=4,
        n_layers=LAYERS,
        mlp_hidden_size=3 * WIDTH,
        embedding_size=VOCABULARY,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_sequence_length=PROMPT + RESPONSE,
        mask_token_id=VOCABULARY - 1,
        weight_tying=False,
    )
    model = LLaDAModel(config)
    model.initialize(torch.Generator().manual_seed(0))
    return Policy(model, byte_tokenizer(), {}, Path(), config.mask_token_id, (VOCABULARY - 2,))


def _reset_high_water_mark() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _high_water_mark() -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
