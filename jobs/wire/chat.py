"""The body of POST /v1/chat/completions.

Text in, text out, one answer. Parameters of OpenAI's that this sampler has no counterpart for are refused unless they
ask for nothing, so that no request is answered as if they had been heeded. What only labels a request (`user`) passes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from bgpo.spec import RolloutSpec
from jobs.wire.base import StorableWire, Wire

MAX_TOKENS = 32_768
MAX_MESSAGES = 1024


def _nothing(*neutral: Any) -> BeforeValidator:
    """Only values that ask for nothing pass."""

    def check(value: Any) -> None:
        if value is not None and not any(type(value) is type(other) and value == other for other in neutral):
            raise PydanticCustomError("unsupported_parameter", "is not supported")

    return BeforeValidator(check)


def _text_of(value: Any) -> Any:
    """A list of text parts as one text."""
    if not isinstance(value, list):
        return value
    for part in value:
        if isinstance(part, dict) and part.get("type") not in ("text", None):
            raise PydanticCustomError("unsupported_parameter", "holds a part that is not text, which is not supported")
        if not isinstance(part, dict) or set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise PydanticCustomError("invalid_part", 'each part must be {{"type": "text", "text": "..."}}')
    return "".join(part["text"] for part in value)


def _role(value: Any) -> Any:
    if value in ("tool", "function"):
        raise PydanticCustomError("unsupported_parameter", "messages of tools are not supported")
    return "system" if value == "developer" else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Nothing = Annotated[None, _nothing()]
Text = Annotated[str, BeforeValidator(_text_of, json_schema_input_type=str | list[dict[str, str]])]


class ChatMessage(Wire):
    """One message. `content` is a text or a list of parts of type text; `developer` is another name for system."""

    role: Annotated[
        Literal["system", "user", "assistant"],
        BeforeValidator(_role, json_schema_input_type=Literal["system", "developer", "user", "assistant"]),
    ]
    content: Text
    name: Nothing = None
    refusal: Nothing = None
    audio: Nothing = None
    function_call: Nothing = None
    tool_calls: Annotated[None, _nothing([])] = None
    tool_call_id: Nothing = None
    annotations: Annotated[None, _nothing([])] = None


class DiffusionBlock(Wire):
    """`diffusion`: how the answer is decoded, see docs/inference.md."""

    steps: int | None = Field(
        None, ge=1, description="Denoising steps, a multiple of the number of blocks. None: half a step a token."
    )
    block_length: int | None = Field(None, ge=1, le=MAX_TOKENS, description="Tokens a block. None: 32.")
    temperature: float | None = Field(None, ge=0, le=2, description="The same as `temperature` of the body.")
    remasking: Literal["low_confidence", "entropy", "random"] | None = Field(
        None, description=RolloutSpec.model_fields["remasking"].description
    )
    threshold: float | None = Field(None, gt=0, le=1, description=RolloutSpec.model_fields["threshold"].description)
    cfg_scale: Annotated[None, _nothing(0, 0.0)] = Field(None, description="Not supported: only 0.")


class StreamOptions(Wire):
    """`stream_options`."""

    include_usage: bool | None = Field(None, description="A last chunk has the usage.")
    include_obfuscation: bool | None = Field(None, description="Has no effect: chunks are never padded.")


Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Field(max_length=4)] | None


class ChatRequest(StorableWire):
    """A request for an answer."""

    model: str = Field(min_length=1, max_length=512, description="A base model, a tuned model, or a checkpoint.")
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Longest answer in tokens. None: 256, or half of a smaller context."
    )
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="Deprecated name of the same.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 = greedy. None: 1.")
    seed: int | None = Field(
        None, ge=-(2**63), le=2**63 - 1, description="The same body with the same seed gives the same text."
    )
    stop: Annotated[Stops, BeforeValidator(_listed, json_schema_input_type=str | Stops)] = Field(
        None, description="The answer ends before the first of these."
    )
    stream: bool | None = Field(None, description="Server-sent events: a chunk whenever a block is finished.")
    stream_options: StreamOptions | None = None
    diffusion: DiffusionBlock = Field(default_factory=DiffusionBlock)

    user: str | None = Field(None, max_length=512, description="Has no effect.")
    safety_identifier: str | None = Field(None, max_length=512, description="Has no effect.")
    prompt_cache_key: str | None = Field(None, max_length=512, description="Has no effect.")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Has no effect: nothing is stored.")
    service_tier: Literal["auto", "default"] | None = None

    n: Annotated[None, _nothing(1)] = Field(None, description="Only 1.")
    top_p: Annotated[None, _nothing(1, 1.0)] = Field(None, description="Only 1.")
    presence_penalty: Annotated[None, _nothing(0, 0.0)] = Field(None, description="Only 0.")
    frequency_penalty: Annotated[None, _nothing(0, 0.0)] = Field(None, description="Only 0.")
    logit_bias: Annotated[None, _nothing({})] = Field(None, description="Not supported.")
    logprobs: Annotated[None, _nothing(False)] = Field(None, description="Not supported.")
    top_logprobs: Annotated[None, _nothing(0)] = Field(None, description="Not supported.")
    tools: Annotated[None, _nothing([])] = Field(None, description="Not supported.")
    tool_choice: Annotated[None, _nothing("none")] = Field(None, description="Not supported.")
    parallel_tool_calls: Annotated[None, _nothing(False, True)] = Field(None, description="Has no effect.")
    functions: Annotated[None, _nothing([])] = Field(None, description="Not supported.")
    function_call: Annotated[None, _nothing("none")] = Field(None, description="Not supported.")
    response_format: Annotated[None, _nothing({"type": "text"})] = Field(None, description="Only text.")
    modalities: Annotated[None, _nothing(["text"])] = Field(None, description="Only text.")
    audio: Nothing = Field(None, description="Not supported.")
    prediction: Nothing = Field(None, description="Not supported.")
    reasoning_effort: Annotated[None, _nothing("none")] = Field(None, description="Not supported.")
    verbosity: Nothing = Field(None, description="Not supported.")
    store: Annotated[None, _nothing(False)] = Field(None, description="Only false: nothing is stored.")
    web_search_options: Nothing = Field(None, description="Not supported.")
