"""Every setting of the server: its unit, its default, and what follows from it."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from serving.cores import usable_cores

Provider = Literal["cpu", "cuda"]

BUNDLED = Path(__file__).parent / "models"
"""The model repository inside this package, with the default model."""

# With as many as there are cores, in each of as many workers, a big machine would have cores squared threads.
_CORES_OF_A_CONNECTION = 2

GROUPS = {
    "config": "Settings and log",
    "host": "Ports",
    "models": "What is served",
    "tls_certificate": "Protection",
    "keepalive_seconds": "Connections",
    "target_error_rate": "What is accepted",
    "provider": "Running a model",
    "max_images_per_request": "Limits",
    "drain_seconds": "Stopping",
}
"""The parts of the manual (`digits serve --help`), each by the setting that it begins with."""


class Settings(BaseSettings):
    """What a server is told. sources.py reads it from flags, the environment and a file; it reads none of them itself."""

    model_config = SettingsConfigDict(
        env_prefix="DIGITS_", env_ignore_empty=True, frozen=True, validate_default=True, allow_inf_nan=False
    )

    config: Path | None = Field(
        None, description="TOML file with settings, such as `grpc_port = 8001`; flags and the environment go before it."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Form of the log on stderr: text for people, json, one object a line, for machines."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is logged; debug has a line for each call, never an image or a token."
    )
    host: str = Field("127.0.0.1", description="Address to listen on, both ports; 0.0.0.0 takes calls from other machines.")
    grpc_port: int = Field(8001, ge=0, le=65535, description="Port for gRPC; 0 takes any free one.")
    metrics_port: int = Field(8002, ge=0, le=65535, description="Port for Prometheus, over HTTP; 0 takes any free one.")
    models: Path = Field(
        BUNDLED,
        description="Model repository, with NAME/VERSION/model.onnx; each model's highest version serves, "
        "or what its routing.toml says.",
    )
    default_model: str = Field("digits", min_length=1, description="Name of the model for requests that name none.")
    poll_seconds: float = Field(
        2.0,
        ge=0.01,
        le=86_400,
        description="How often to look for new versions and changed files; what rests from one look to the next is taken.",
    )
    model_control: bool = Field(
        False, description="Take calls that load and unload models; anybody may make them unless tokens are asked for."
    )
    reflection: bool = Field(True, description="Tell callers which methods there are, as grpcurl asks.")
    tls_certificate: Path | None = Field(
        None,
        description="The server's certificate and those that lead to an authority, PEM; taken up again when it changes. "
        "Without it, no TLS.",
    )
    tls_key: Path | None = Field(None, description="The certificate's private key, PEM, without a password.")
    tls_client_ca: Path | None = Field(
        None,
        description="Authorities, PEM: clients must show a certificate that one of them has signed (mutual TLS).",
    )
    tokens: Path | None = Field(
        None,
        description="TOML file of clients and their tokens; taken up again when it changes. Without it, anybody may call.",
    )
    keepalive_seconds: float = Field(
        30.0,
        ge=0.001,
        le=86_400,
        description="Silence after which a client is asked for a sign of life; after as much again it is cut off.",
    )
    max_connection_age_seconds: float = Field(
        0.0,
        ge=0,
        le=2_000_000,
        description="Age at which connections close, so that clients find new servers; give or take a tenth; 0: never. "
        "No call is lost.",
    )
    max_connection_age_grace_seconds: float = Field(
        60.0,
        ge=0,
        le=2_000_000,
        description="How long calls and streams on a connection past its age may go on; then they are cut off.",
    )
    target_error_rate: float = Field(
        0.005,
        gt=0,
        lt=1,
        description="Share of wrong answers to bear among those accepted, where a call names none: by it the model's own "
        "certified threshold is chosen. Less rejects more.",
    )
    field_target_error_rate: float = Field(
        0.01, gt=0, lt=1, description="The same for fields, of which one is wrong when any of its digits is."
    )
    lexicons: Path | None = Field(
        None,
        description="Directory of lexicons, NAME.txt with a valid code a line, that calls for fields may name.",
    )
    audit_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of accepted answers that are marked for audit, at random: their truth tells the error among the "
        "accepted.",
    )
    capture: str | None = Field(
        None,
        description="Database to keep images in that were rejected or marked for audit, and their truth, to learn from: "
        "sqlite:///FILE, or for several replicas postgresql://USER:PASSWORD@HOST/DATABASE. Without it, no image is kept.",
    )
    capture_days: float = Field(
        30.0, gt=0, le=36_500, description="How long captured images are kept; then they are deleted."
    )
    capture_max_images: int = Field(
        100_000,
        ge=1,
        le=1_000_000_000,
        description="Captured images that are kept, the newest; a thousand take about a megabyte.",
    )
    recognition_key: Path | None = Field(
        None,
        description="File of keys, one a line, that sign the ids of answers: the first signs, all are known; read at start. "
        "Without it anybody can report truth about answers that were never given.",
    )
    provider: Provider = Field(
        "cpu", description="What runs the model. cuda needs onnxruntime-gpu and a GPU, or does not start."
    )
    workers: int = Field(
        default_factory=usable_cores,
        ge=1,
        le=1024,
        description="Processes that share the port, each new connection going to one of them. Each loads every model; with "
        "more than 1, a supervisor restarts those that die.",
    )
    watchdog_seconds: float = Field(
        30.0,
        ge=1,
        le=86_400,
        description="About how long one of several workers, once it answers, may stand still; then it is killed, and "
        "another takes its place.",
    )
    instances: int = Field(
        default_factory=lambda: min(_CORES_OF_A_CONNECTION, usable_cores()),
        ge=1,
        le=1024,
        description="Runs of a model at the same time in each worker, one core each: two where the CPU quota allows, so "
        "that a client with one connection, which is one worker's, has two cores. Few workers on many cores want more.",
    )
    max_batch_size: int = Field(
        128,
        ge=1,
        le=1_000_000,
        description="Images in one run, at most; on CPU larger runs are no faster, and others wait longer.",
    )
    max_queue_delay_ms: float = Field(
        0.0,
        ge=0,
        le=60_000,
        description="How long a run waits to fill up, milliseconds; anything above 0 slows calls when load is low.",
    )
    max_images_per_request: int = Field(
        10_000, ge=1, le=1_000_000, description="Images in one call, at most; it also bounds the size of a message."
    )
    max_queue_size: int = Field(
        20_000,
        ge=1,
        le=100_000_000,
        description="Images that may wait, beyond which calls get RESOURCE_EXHAUSTED.",
    )
    max_pending_calls: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Calls that may wait in a worker to be begun, beyond which gRPC itself ends them, as CANCELLED and "
        "uncounted; if more wait than can be begun before their deadlines, all work is in vain.",
    )
    max_streams: int = Field(
        100, ge=1, description="Streams that a worker keeps open at once; more are refused with RESOURCE_EXHAUSTED."
    )
    max_in_flight_per_stream: int = Field(
        256,
        ge=1,
        description="Requests of one stream in work at once; beyond, nothing more is read until answers are taken.",
    )
    drain_seconds: float = Field(
        3.0,
        ge=0,
        le=86_400,
        description="On SIGTERM, how long to go on answering while load balancers learn that this server is leaving.",
    )
    grace_seconds: float = Field(
        10.0,
        ge=0,
        le=86_400,
        description="After the drain, how long the calls in flight may take; those that take longer are cut off.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is given by name counts, or a worker process would read anew what its supervisor has read."""
        return (init_settings,)

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> Self:
        if self.max_queue_size < self.max_images_per_request:
            raise ValueError(
                f"max_queue_size ({self.max_queue_size}) is below max_images_per_request ({self.max_images_per_request}): "
                "the largest requests would never be taken"
            )
        return self

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_certificate"
            raise ValueError(f"{missing} is not set: a certificate and its key are needed together")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls_client_ca is set without tls_certificate: clients can only be asked for theirs over TLS")
        return self
