"""Low-rank adapters (LoRA, arXiv 2106.09685) on the linear layers of a network's blocks, through peft.

The adapter's files are PEFT's published layout, so PEFT opens them over the base model. Only the adapter is trained;
its weights are float32 whatever the base has. Merging works on named tensors, so that it also serves weights that
were gathered from several processes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bgpo.errors import ModelError
from bgpo.models.network import Network
from bgpo.spec import LoraSpec

if TYPE_CHECKING:
    from peft import LoraConfig

LoraTargets = Literal["all", "attention"]
ADAPTER_DIR = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_NAME = "default"
_PEFT_PREFIX = "base_model.model."


def inject(model: Network, spec: LoraSpec, seed: int) -> None:
    """Put adapters into the network and freeze everything else. At first they add exactly nothing."""
    # peft takes seconds to import, and only runs with adapters need it.
    from peft import inject_adapter_in_model

    inject_adapter_in_model(peft_config(model, spec), model, adapter_name=_NAME)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        trained = _is_adapter(name)
        parameter.requires_grad_(trained)
        if not trained:
            continue
        parameter.data = parameter.data.float()
        if ".lora_A." in name:
            drawn = torch.empty(parameter.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(drawn)
        else:
            nn.init.zeros_(parameter)


def peft_config(model: Network, spec: LoraSpec) -> LoraConfig:
    """PEFT's description of the adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # annotated int, used as a number
        target_modules=target_pattern(model, spec.targets),
        lora_dropout=0.0,
        bias="none",
    )


def adapted_layers(model: Network, targets: LoraTargets) -> tuple[str, ...]:
    """The layers of a block that get an adapter, by the last part of their names."""
    return model.attention_layers + (model.feed_forward_layers if targets == "all" else ())


def target_pattern(model: Network, targets: LoraTargets) -> str:
    """Regular expression of the adapted layers' full names: PEFT's list form would also match a head of that name."""
    first = next(name for name, module in model.named_modules() if module is model.blocks[0])
    container = first.rpartition(".")[0]
    return rf"{re.escape(container)}\.\d+\.(?:\w+\.)?(?:{'|'.join(adapted_layers(model, targets))})"


def adapter_layers(model: nn.Module) -> Iterator[Any]:
    """peft's layers in the network."""
    from peft.tuners.lora import LoraLayer

    return (module for module in model.modules() if isinstance(module, LoraLayer))


@contextmanager
def disabled(model: Network) -> Iterator[None]:
    """Switch the adapters off: exactly the base model."""
    layers = list(adapter_layers(model))
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def adapter_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's tensors of a network's state, under PEFT's names."""
    return {_PEFT_PREFIX + name.replace(f".{_NAME}.", "."): value for name, value in state.items() if _is_adapter(name)}


def merged_state(state: Mapping[str, Tensor], spec: LoraSpec) -> dict[str, Tensor]:
    """A network's state with the adapter added to the base weights, under the family's names."""
    merged = {}
    for name, value in state.items():
        if _is_adapter(name):
            continue
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            down, up = state[f"{layer}.lora_A.{_NAME}.weight"], state[f"{layer}.lora_B.{_NAME}.weight"]
            delta = (up.float() @ down.float()) * (spec.alpha / spec.rank)
            value = (value.float() + delta).to(value.dtype)
        merged[name.replace(".base_layer.", ".")] = value
    return merged


def fold(model: Network, spec: LoraSpec) -> None:
    """Add the adapter to the base weights in place and take it out: an ordinary network, as `merged_state` names it."""
    for name, layer in [(name, module) for name, module in model.named_modules() if hasattr(module, "base_layer")]:
        base = layer.base_layer
        delta = (layer.lora_B[_NAME].weight.float() @ layer.lora_A[_NAME].weight.float()) * (spec.alpha / spec.rank)
        with torch.no_grad():
            base.weight.copy_((base.weight.float() + delta).to(base.weight.dtype))
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, base)
    del model.peft_config  # peft's note that it has been here
    model.requires_grad_(True)


def base_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state without its adapter, under the family's names."""
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if not _is_adapter(name)}


def save_adapter(model: Network, spec: LoraSpec, state: Mapping[str, Tensor], base: str, directory: Path) -> None:
    """Write the adapter in PEFT's layout; `base` is what its config names as the base model."""
    directory.mkdir(parents=True, exist_ok=True)
    config = peft_config(model, spec)
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(str(directory))
    tensors = {name: value.detach().cpu().contiguous() for name, value in adapter_state(state).items()}
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def find_adapter(path: Path) -> Path | None:
    """Where the adapter of a checkpoint directory lies; None if it has none."""
    for directory in (path / ADAPTER_DIR, path):
        if (directory / ADAPTER_CONFIG).is_file():
            return directory
    return None


def read_spec(directory: Path, model: Network) -> LoraSpec:
    """The specification an adapter was made with.

    Raises:
        ModelError: it is no LoRA adapter, or one for other layers than this family's.
    """
    path = directory / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
        kind, targets = config["peft_type"], config["target_modules"]
        spec = LoraSpec(rank=config["r"], alpha=float(config["lora_alpha"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read as the configuration of a LoRA adapter: {error!r}") from error
    variants = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
    if kind != "LORA" or any(config.get(key) for key in variants):
        raise ModelError(f"{path}: only plain LoRA adapters are supported")
    for choice in get_args(LoraTargets):
        named = set(targets) if isinstance(targets, list) else targets
        if named in (target_pattern(model, choice), set(adapted_layers(model, choice))):
            return spec.model_copy(update={"targets": choice})
    raise ModelError(f"{path}: target_modules {targets!r} fit no choice of `lora.targets` for {model.family}")


def load(model: Network, directory: Path) -> None:
    """Copy an adapter's weights into an injected network, bit for bit.

    Raises:
        ModelError: the file cannot be read or does not fit.
    """
    path = directory / ADAPTER_WEIGHTS
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
    own = adapter_state(model.state_dict())
    problems = [f"missing {name}" for name in own if name not in stored]
    problems += [f"unknown {name}" for name in stored if name not in own]
    problems += [
        f"{name} is {tuple(stored[name].shape)}, not {tuple(value.shape)}"
        for name, value in own.items()
        if name in stored and stored[name].shape != value.shape
    ]
    if problems:
        raise ModelError(f"the adapter {path} does not fit this model: {'; '.join(problems[:5])}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(stored[name])


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name
