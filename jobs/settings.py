"""One settings object, read from `BGPO_*` environment variables.

Every default derives from `home`, so an embedded installation needs no setting at all. Secrets are `SecretStr`: they do
not show in logs or tracebacks.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bgpo.egress import host_pattern
from bgpo.egress.signing import keys
from bgpo.rewards.settings import JudgeSettings
from jobs.vault import parse_keys

_EXAMPLE_MODELS = Path(__file__).resolve().parent.parent / "examples" / "models"


class Judge(JudgeSettings):
    """A judge with its key, which goes where graders run as a secret and is no part of any job."""

    api_key: SecretStr | None = None

    def public(self) -> JudgeSettings:
        """All but the key."""
        return JudgeSettings.model_validate(self.model_dump(exclude={"api_key"}))


class Settings(BaseSettings):
    """Configuration of the API, the workers and the command line."""

    model_config = SettingsConfigDict(env_prefix="BGPO_", extra="ignore", frozen=True, hide_input_in_errors=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".bgpo", description="Folder of everything embedded.")
    database_url: str = Field("", description="SQLAlchemy URL; empty = SQLite under home.")
    redis_url: SecretStr = Field(SecretStr("redis://127.0.0.1:6379/0"), description="Broker of the doorbell.")
    artifacts_url: str = Field("", description="fsspec URL (file://, s3://, memory://); empty = a folder under home.")
    model_root: Path = Field(_EXAMPLE_MODELS, description="Each sub-folder with a config.json is a base model.")
    reward_model_root: Path | None = Field(
        None, description="Each sub-folder with a config.json is a reward model; None = there are none."
    )

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    api_key: SecretStr | None = Field(None, description="The bearer key; None = any key, loopback only.")
    max_file_bytes: int = Field(512 * 1024 * 1024, ge=1)
    max_part_bytes: int = Field(64 * 1024 * 1024, ge=1, description="Of one part of an upload.")
    max_upload_bytes: int = Field(8 * 1024**3, ge=1, description="Of all parts of an upload together.")
    upload_ttl_s: float = Field(3600, gt=0, description="An upload takes parts for this long.")
    max_line_bytes: int = Field(4 * 1024 * 1024, ge=1, description="Longest JSONL line.")

    request_timeout_s: float = Field(
        60, gt=0, description="For a request's head, and for its body beyond what 16 KiB a second take."
    )

    max_streams: int = Field(1024, ge=1, description="Event streams of a key that one API process keeps open.")
    metrics_token: SecretStr | None = Field(
        None,
        description="The bearer token for /metrics; None = it is for programs of this machine, without one.",
    )

    lease_s: float = Field(60, gt=0, description="A worker that did not renew for this long may have lost its job.")
    beat_s: float = Field(15, gt=0)
    self_fence_s: float = Field(45, gt=0, description="A worker that could not renew for this long kills the trainer.")
    reap_after_s: float = Field(10, ge=0, description="Wait this long after a lease ended before taking the job.")
    stop_grace_s: float = Field(60, gt=0, description="Time for the trainer to stop by itself.")
    reconcile_s: float = Field(5, gt=0)
    max_attempts: int = Field(3, ge=1, description="Attempts of a job without a new checkpoint.")
    max_queue_age_s: float | None = Field(None, gt=0, description="A job queued for longer fails; None = never.")
    stall_s: float = Field(1800, gt=0, description="A trainer that reports nothing for this long is restarted.")
    stall_loading_s: float = Field(3600, gt=0, description="The same while it loads the model.")
    min_free_bytes: int = Field(1 << 30, ge=0, description="A worker with less free disk takes no jobs.")
    orphan_age_s: float = Field(86_400, gt=0, description="Files without a row are removed when older than this.")
    sweep_s: float = Field(3600, gt=0, description="Seconds between two looks for such files.")

    max_queued_jobs: int = Field(100, ge=1, description="Jobs of a project that may wait.")
    max_running_jobs: int | None = Field(None, ge=1, description="Jobs of a project that may run; None = any number.")
    max_gpus: int = Field(8, ge=1, description="Accelerators one job may ask for.")

    webhook_secret: SecretStr | None = Field(
        None, description="Of webhooks to URLs of jobs: `whsec_` + base64, a second one behind a space."
    )
    webhook_allow_private: bool = Field(False, description="Webhooks may go to http:// and private addresses.")
    webhook_timeout_s: float = Field(10, gt=0, description="Of one try, from resolving the name to the answer.")
    egress_ports: tuple[int, ...] = Field((443,), description="Ports that URLs named by users may have.")
    egress_hosts: tuple[str, ...] | None = Field(
        None, description="Hosts that URLs named by users may have, *.example.com for subdomains; None = any."
    )
    admin_key: SecretStr | None = Field(None, description="The key for /v1/organization; without any key, loopback.")

    require_keys: bool = Field(False, description="Without BGPO_API_KEY, too, programs of this machine need a key.")
    key_pepper: SecretStr | None = Field(
        None, description="Base64 of 32 bytes: hashes stored API keys. None = a file under home."
    )
    key_cache_s: float = Field(5, ge=0, description="A revoked key may still be accepted for this long.")
    auth_failures_per_minute: int = Field(120, ge=1, description="Refused keys of an address before it must wait.")
    rate_read: int | None = Field(None, ge=1, description="GET requests of a project a minute; None = any number.")
    rate_write: int | None = Field(None, ge=1, description="Other requests of a project a minute.")
    rate_inference: int | None = Field(None, ge=1, description="Inference requests of a project a minute.")
    rate_inference_tokens: int | None = Field(None, ge=1, description="Tokens of such requests a minute.")

    judges: dict[str, Judge] = Field(
        default_factory=dict,
        description="JSON: models that score_model and label_model may name, see docs/graders-api.md.",
    )
    embedding_model: str | None = Field(None, description="The judge whose /embeddings text_similarity cosine uses.")
    secrets_key: SecretStr | None = Field(
        None,
        description="Base64 of 32 bytes: encrypts stored secrets; older ones behind spaces. None = a file under home.",
    )
    grader_allow_private: bool = Field(False, description="endpoint graders may go to http:// and private addresses.")
    grader_max_seconds: float = Field(120, gt=0, le=120, description="Longest run of a program that a grader runs.")
    grader_max_memory_mb: int = Field(2048, ge=64, le=2048)
    grader_max_disk_mb: int = Field(1024, ge=1, le=1024)
    grader_max_processes: int = Field(32, ge=1, le=256)
    grader_runs: int = Field(4, ge=1, description="Graders that one API process runs at a time.")
    grader_run_s: float = Field(180, gt=0, description="Longest time of one graders/run or run_batch.")
    grader_try_s: float = Field(30, gt=0, description="Longest try of a job's grader when the job is created.")

    worker_gpus: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cpu:[1-9]\d?|\d+(,\d+)*)$",
        description="The worker's accelerators: GPU indexes, cpu:N for N processes, auto = all GPUs or the CPU.",
    )
    lock_dir: Path | None = Field(None, description="Folder of the GPU locks; None = /run/lock, or the temporary one.")
    trainer_command: tuple[str, ...] | None = Field(None, description="JSON list; None = this Python -m bgpo.run.")
    trainer_device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    trainer_threads: int | None = Field(None, ge=1, description="CPU threads of a trainer; None = torch's default.")

    max_waiting_completions: int = Field(64, ge=1, description="Chat completions that may wait for a generator.")
    max_waiting_completions_per_project: int = Field(32, ge=1, description="The same of one project.")
    completion_timeout_s: float = Field(300, gt=0, description="Longest time for a chat completion, waiting included.")
    completion_keep_s: float = Field(
        600, gt=0, description="Texts of a completion are forgotten so long after its end."
    )
    generator_device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    generator_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of a model in a generator's memory; auto = bfloat16 on a GPU, else float32."
    )
    generator_threads: int | None = Field(None, ge=1, description="CPU threads of a generator; None = torch's default.")
    generator_models: int = Field(2, ge=1, description="Models a generator keeps in memory.")
    generator_max_bytes: int | None = Field(None, ge=1, description="Bytes of their weights; None = any.")
    generator_cache_bytes: int = Field(
        64 << 30, ge=0, description="Disk for checkpoints a generator has fetched; the one in use may exceed it."
    )
    generator_batch: int = Field(8, ge=1, le=64, description="Completions a generator decodes at once.")
    generator_stall_s: float = Field(300, gt=0, description="A process that answers nothing for so long is restarted.")
    generator_idle_s: float = Field(
        600, gt=0, description="Without requests for so long, a generator frees its memory."
    )

    otel_endpoint: str | None = Field(
        None, pattern=r"^https?://", description="URL of an OpenTelemetry collector (OTLP by HTTP); None = no traces."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    @field_validator("webhook_secret")
    @classmethod
    def _check_webhook_secret(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value is not None and keys(value.get_secret_value()) else None

    @field_validator("metrics_token")
    @classmethod
    def _no_empty_token(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value is not None and value.get_secret_value() else None

    @field_validator("secrets_key", "key_pepper")
    @classmethod
    def _check_secrets_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value().strip():  # as compose passes a variable that is not set
            return None
        parse_keys(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _embeddings_need_a_judge(self) -> Self:
        if self.embedding_model is not None and self.embedding_model not in self.judges:
            raise ValueError(f"embedding_model {self.embedding_model} is not one of judges")
        return self

    @field_validator("egress_hosts")
    @classmethod
    def _check_egress_hosts(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else tuple(map(host_pattern, value))

    @model_validator(mode="after")
    def _defaults_under_home(self) -> Self:
        home = self.home.expanduser().resolve()
        values = {
            "home": home,
            "database_url": self.database_url or f"sqlite:///{home / 'bgpo.db'}",
            "artifacts_url": self.artifacts_url or f"file://{home / 'artifacts'}",
            "model_root": self.model_root.expanduser().resolve(),
            "reward_model_root": self.reward_model_root and self.reward_model_root.expanduser().resolve(),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)  # frozen for everyone else
        return self

    @model_validator(mode="after")
    def _lease_outlives_self_fence(self) -> Self:
        if not self.beat_s < self.self_fence_s < self.lease_s:
            raise ValueError(
                f"need beat_s < self_fence_s < lease_s, got {self.beat_s}, {self.self_fence_s}, {self.lease_s}"
            )
        return self

    @property
    def scratch(self) -> Path:
        """Folder for files on their way into the artifact store."""
        return self.home / "tmp"

    @property
    def loopback_only(self) -> bool:
        """Whether `host` cannot be reached from another machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
