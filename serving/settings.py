"""The settings of the server: type, range, default, and a description that states the consequence of each."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from serving.contract import IMAGE_BYTES
from serving.cores import usable_cores

Provider = Literal["cpu", "cuda"]

BUNDLED = Path(__file__).parent / "models"
"""The model repository inside this package."""

# One instance per core, in each of one worker per core, would start cores squared threads.
_INSTANCES = 2

_LEAST_MESSAGE_BYTES = 4 << 20  # gRPC's own default, which leaves room for a crop

_ORIGIN = re.compile(r"https?://[^/?#\s,*]+")

GROUPS = {
    "config": "Configuration and log",
    "host": "Ports",
    "models": "Models",
    "tls_certificate": "Security",
    "front": "Connections",
    "target_error_rate": "Decisions and feedback",
    "provider": "Inference",
    "max_images_per_request": "Limits",
    "drain_seconds": "Shutdown",
}
"""Titles of the groups in `digits serve --help`, by the first setting of each group."""


class Settings(BaseSettings):
    """The settings of a server, as values.

    cli/load_settings.py reads them from flags, the environment and a file; this class reads nothing.
    """

    model_config = SettingsConfigDict(
        env_prefix="DIGITS_", env_ignore_empty=True, frozen=True, validate_default=True, allow_inf_nan=False
    )

    config: Path | None = Field(
        None, description="TOML file with settings, such as `grpc_port = 8001`. Flags and the environment override it."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Format of the log on stderr: text for people; json, one object per line, for machines."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Lowest level that is logged. debug adds a line per call, never an image or a token, and names what "
        "holds the event loop for over 20 ms.",
    )
    host: str = Field(
        "127.0.0.1",
        description="Address that both ports listen on; of a name, all addresses. 0.0.0.0 or :: accepts calls from other "
        "machines, over IPv4 and IPv6.",
    )
    grpc_port: int = Field(8001, ge=0, le=65535, description="Port for gRPC, Connect and gRPC-Web. 0 takes any free port.")
    metrics_port: int = Field(
        8002, ge=0, le=65535, description="Port for /metrics, /healthz and /readyz over HTTP. 0 takes any free port."
    )
    models: Path = Field(
        BUNDLED,
        description="Model repository: NAME/VERSION/model.onnx. Each model's highest version serves, unless its "
        "routing.toml names others.",
    )
    default_model: str = Field(
        "digits",
        min_length=1,
        description="Model for requests that name none. The service is ready only while this model answers.",
    )
    poll_seconds: float = Field(
        2.0,
        ge=0.01,
        le=86_400,
        description="Polling interval, seconds. A file is loaded once it is unchanged between two polls.",
    )
    refusals: Path | None = Field(
        None,
        description="Directory that keeps the refusals of model files across restarts; replicas may share it. By default "
        ".refused in the model repository if it is writable, and the temporary directory of this machine.",
    )
    load_seconds: float = Field(
        30.0,
        ge=0.1,
        le=86_400,
        description="Time to load and try a version in a process of its own, seconds. A slower version is refused.",
    )
    load_memory_bytes: int = Field(
        256 << 20,
        ge=16 << 20,
        le=1 << 50,
        description="Memory that this process may take for a version, beyond its own 70 MB. A version that needs more is "
        "refused. Not limited on a GPU.",
    )
    max_model_bytes: int = Field(64 << 20, ge=1, le=1 << 40, description="Size of a model file. Larger ones are refused.")
    model_control: bool = Field(
        False, description="Accept calls that load and unload models. Without tokens, any caller may make them."
    )
    reflection: bool = Field(True, description="Answer gRPC reflection, so that grpcurl can list the methods.")
    tls_certificate: Path | None = Field(
        None,
        description="The server's certificate and its intermediate certificates, PEM; reloaded when the file changes. "
        "Without it, connections are not encrypted.",
    )
    tls_key: Path | None = Field(
        None, description="Private key of the certificate, PEM, without a password; reloaded with it."
    )
    tls_client_ca: Path | None = Field(
        None,
        description="Certificate authorities, PEM. Clients must show a certificate that one of them signed (mutual TLS).",
    )
    tokens: Path | None = Field(
        None,
        description="TOML file of clients and their tokens; reloaded when it changes. Without it, any caller is accepted.",
    )
    front: Literal["http2", "grpcio"] = Field(
        "http2",
        description="Server of the gRPC port: http2, on libnghttp2, bounds what each client may hold; grpcio is gRPC's own.",
    )
    keepalive_seconds: float = Field(
        30.0,
        ge=0.001,
        le=86_400,
        description="Idle time of a connection before the server pings the client, seconds. A client that does not answer "
        "within the same time is disconnected.",
    )
    max_connection_age_seconds: float = Field(
        0.0,
        ge=0,
        le=2_000_000,
        description="Age at which a connection closes, seconds, give or take a tenth, so that clients find new servers. "
        "Calls under way have the grace below to end. 0 keeps connections open.",
    )
    max_connection_age_grace_seconds: float = Field(
        60.0,
        ge=0,
        le=2_000_000,
        description="Time for calls and streams on a connection past its age, seconds. After it they are cut off.",
    )
    cors_origins: str | None = Field(
        None,
        description="Origins of web pages whose scripts may call with the front http2, separated by commas, such as "
        "https://desk.example. Without it, browsers refuse answers to pages of other origins.",
    )
    idle_seconds: float = Field(
        600.0, ge=0.001, le=2_000_000, description="Time without a call after which a connection is closed, seconds."
    )
    preface_seconds: float = Field(
        10.0,
        ge=0.001,
        le=86_400,
        description="Time for a new connection to send its first frame, TLS handshake included, seconds.",
    )
    message_seconds: float = Field(
        30.0,
        ge=0.001,
        le=86_400,
        description="Time for the message of a call to arrive, seconds. A slower call ends with DEADLINE_EXCEEDED. Applies "
        "with the front http2, as do answer_seconds, and the limits on connections, open calls, bytes and resets.",
    )
    answer_seconds: float = Field(
        30.0,
        ge=0.001,
        le=86_400,
        description="Time in which a client that has answers waiting takes none, seconds. Its connection is closed then.",
    )
    max_connections: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Open connections of a worker, at most. One more replaces an idle one, or is closed.",
    )
    max_connections_per_peer: int = Field(
        250,
        ge=1,
        le=1_000_000,
        description="Open connections of a worker to one client address, or one IPv6 network of 64 bits. One more replaces "
        "the longest idle one, or is closed if all have calls. A proxy is one client.",
    )
    max_calls_per_connection: int = Field(
        1000, ge=1, le=1_000_000, description="Open calls and streams on one connection. Clients hold back the others."
    )
    max_open_calls: int = Field(
        10_000,
        ge=1,
        le=10_000_000,
        description="Open calls and streams of a worker. Beyond it, the client address with the most calls loses one whose "
        "message has not arrived or whose answer is not taken; else new calls are refused.",
    )
    max_header_bytes: int = Field(
        16_384,
        ge=1024,
        le=1 << 20,
        description="Headers of one call, decompressed. Larger ones are refused. At four times the size the connection "
        "closes.",
    )
    max_request_buffer_bytes: int = Field(
        128 << 20,
        ge=1 << 20,
        le=1 << 40,
        description="Request bytes that a worker buffers. Beyond it, the largest request of the client address that holds "
        "most is refused.",
    )
    max_answer_buffer_bytes: int = Field(
        128 << 20,
        ge=1 << 20,
        le=1 << 40,
        description="Answer bytes that wait for clients of a worker. Beyond it, a connection of the client address that "
        "leaves most is closed. Requests of streams whose answers are not taken have the same bound.",
    )
    max_resets_per_second: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Calls that one connection may cancel each second, and all of one client address four times as many. "
        "Beyond it, the connection is closed.",
    )
    target_error_rate: float = Field(
        0.005,
        gt=0,
        lt=1,
        description="Highest share of wrong answers among the accepted ones, for calls that name none. It selects the "
        "model's certified threshold; a lower rate rejects more.",
    )
    field_target_error_rate: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Highest share of wrong fields among the accepted ones, for calls that name none. A field is wrong if "
        "one of its digits is.",
    )
    lexicons: Path | None = Field(
        None,
        description="Directory of lexicons, NAME.txt with one valid code per line; read at start. Calls for fields may "
        "name one.",
    )
    audit_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of accepted answers marked for audit, at random. Their reported truth measures the error among "
        "the accepted.",
    )
    capture: str | None = Field(
        None,
        description="Database for images that were rejected or marked for audit, and their truth, to train on: "
        "sqlite:///FILE, or for several replicas postgresql://USER:PASSWORD@HOST/DATABASE. Without it, no "
        "image is kept.",
    )
    capture_days: float = Field(30.0, gt=0, le=36_500, description="Age at which captured images are deleted, days.")
    capture_max_images: int = Field(
        100_000,
        ge=1,
        le=1_000_000_000,
        description="Captured images to keep; beyond it the oldest are deleted. A thousand take about one megabyte.",
    )
    recognition_key: Path | None = Field(
        None,
        description="File of keys that sign the ids of answers, one per line; read at start. The first signs, all verify. "
        "Without it, any caller can report truth for answers that were never given.",
    )
    provider: Provider = Field(
        "cpu",
        description="Hardware that runs the model. cuda needs onnxruntime-gpu and a GPU; without them the service does "
        "not start.",
    )
    workers: int = Field(
        default_factory=usable_cores,
        ge=1,
        le=1024,
        description="Processes that share the gRPC port; each new connection goes to one of them. Each loads every model. "
        "Above 1, a supervisor restarts those that die.",
    )
    watchdog_seconds: float = Field(
        30.0,
        ge=1,
        le=86_400,
        description="Time without a sign of life after which a worker is killed and replaced, seconds, roughly. Applies "
        "with more than one worker.",
    )
    instances: int = Field(
        default_factory=lambda: min(_INSTANCES, usable_cores()),
        ge=1,
        le=1024,
        description="Model runs in parallel in each worker, one core each. Two where the CPU quota allows, because the "
        "one connection of a client reaches one worker. With few workers on many cores, use more.",
    )
    max_batch_size: int = Field(
        128,
        ge=1,
        le=1_000_000,
        description="Images in one model run, at most. On a CPU, larger runs are no faster and make other requests wait "
        "longer.",
    )
    max_queue_delay_ms: float = Field(
        0.0,
        ge=0,
        le=60_000,
        description="Time a run waits for more images, milliseconds. Above 0, it slows calls under low load.",
    )
    max_images_per_request: int = Field(
        10_000, ge=1, le=1_000_000, description="Images in one call, at most. It also bounds the size of a message."
    )
    max_queue_size: int = Field(
        20_000,
        ge=1,
        le=100_000_000,
        description="Images of each priority that may wait in a worker. Beyond it, the client with most loses requests to a "
        "client with fewer; else calls are refused with RESOURCE_EXHAUSTED.",
    )
    max_pending_calls: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Calls that may wait in a worker before they are started, with the front grpcio. Beyond it, gRPC ends "
        "them with CANCELLED, uncounted. If more wait than their deadlines allow, all work is wasted.",
    )
    max_streams: int = Field(
        100,
        ge=1,
        description="Open streams in a worker, at most. Beyond it, the client with most loses one to a client with fewer; "
        "else new streams are refused with RESOURCE_EXHAUSTED.",
    )
    max_in_flight_per_stream: int = Field(
        256,
        ge=1,
        description="Requests of one stream in progress, at most. Beyond it, the server stops reading until the client "
        "takes answers (backpressure).",
    )
    drain_seconds: float = Field(
        3.0,
        ge=0,
        le=86_400,
        description="Time to keep answering after SIGTERM, seconds, while load balancers learn that this server stops.",
    )
    grace_seconds: float = Field(
        10.0,
        ge=0,
        le=86_400,
        description="Time for calls in flight after the drain, seconds. After it they are cut off.",
    )

    @property
    def max_message_bytes(self) -> int:
        """Size of the largest request message."""
        # A pixel is one byte, and up to two bytes in a typed tensor of the Open Inference Protocol.
        return max(self.max_images_per_request * IMAGE_BYTES * 2 + 1024, _LEAST_MESSAGE_BYTES)

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """The origins in `cors_origins`."""
        return tuple(origin.strip() for origin in (self.cors_origins or "").split(",") if origin.strip())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Takes only arguments: a worker must not read again the environment that its supervisor has read."""
        return (init_settings,)

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> Self:
        if self.max_queue_size < self.max_images_per_request:
            raise ValueError(
                f"max_queue_size ({self.max_queue_size}) is below max_images_per_request ({self.max_images_per_request}): "
                "the largest requests would always be refused"
            )
        return self

    @model_validator(mode="after")
    def _buffer_holds_a_request(self) -> Self:
        largest = self.max_images_per_request * IMAGE_BYTES
        if self.max_request_buffer_bytes < largest:
            raise ValueError(
                f"max_request_buffer_bytes ({self.max_request_buffer_bytes}) is below the {largest} bytes of "
                f"max_images_per_request ({self.max_images_per_request}): the largest requests would always be refused"
            )
        return self

    @model_validator(mode="after")
    def _origins_are_origins(self) -> Self:
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"cors_origins has {origin!r}, expected scheme and host, such as https://desk.example")
        return self

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_certificate"
            raise ValueError(f"{missing} is not set, but a certificate and its key are needed together")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls_client_ca is set without tls_certificate, but clients show certificates only over TLS")
        return self
