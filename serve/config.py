"""What a service serves, to whom, and its limits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """What a service serves, to whom, and its limits."""

    registry: Path
    """Folder of models, NAME/VERSION each; looked at again every few seconds."""
    api_keys: Path | None = None
    """TOML file of API keys' hashes (make one with serve.keys); without it the service answers its own host only."""
    allow_anonymous: bool = False
    """Answer other hosts too although there are no keys."""
    gate_overrides: Path | None = None
    """TOML file in which the operator answers for models that failed the privacy gate; without it they are refused."""
    require_audit: bool = False
    """Refuse models, too, that no privacy audit has passed."""
    state: Path | None = None
    """Folder for the audit log (who took which addresses) and used quotas; without it both end with the process."""
    device: str = "cpu"
    """Where the models run: cpu or cuda."""
    gpus: float = 1.0
    """Of a GPU that each replica takes when device is cuda; 0.25 lets four share one."""
    num_replicas: int = 1
    """Processes that answer."""
    max_replicas: int | None = None
    """With it, Ray Serve starts and stops replicas between num_replicas and so many, as load asks."""
    direct_port: int | None = None
    """A port of the replicas' own, past Ray's proxy: faster for small requests, but autoscaling does not see them."""
    direct_host: str = "127.0.0.1"
    """Address of that port."""
    max_models: int = 8
    """Models that a replica holds in memory; the least recently used one makes room."""
    refresh_s: float = 5.0
    """Seconds between two looks at the registry and the overrides."""
    torch_threads: int = 1
    """Threads of one forward pass in each replica."""
    encoders: int = 1
    """Threads in each replica that turn images into files."""
    max_count: int = 100_000
    """Most images in one request."""
    max_body_bytes: int = 64 * 1024
    """Largest JSON body of one request."""
    max_upload_bytes: int = 16 * 1024 * 1024
    """Largest image file that is sent to be encoded."""
    max_upload_pixels: int = 25_000_000
    """Most pixels in such an image."""
    max_waiting: int = 32
    """Sampling requests in one replica, running and waiting; further ones get 503 at once."""
    timeout_s: float = 60.0
    """Seconds that a request waits for its next images before it gets 503."""
    body_timeout_s: float = 20.0
    """Seconds in which a request's whole body must have come."""
    reader_timeout_s: float = 60.0
    """Seconds in which a client must take the next part of an answer; its place is then another's."""
    log_format: Literal["text", "json"] = "text"
    """Of the replicas' logs; json is one object per line."""

    def __post_init__(self) -> None:
        for name in (
            "num_replicas", "max_models", "torch_threads", "encoders", "max_count", "max_body_bytes",
            "max_upload_bytes", "max_upload_pixels", "max_waiting",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more; leave it out for the default")
        for name in ("gpus", "refresh_s", "timeout_s", "body_timeout_s", "reader_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0; leave it out for the default")
        if self.direct_port is not None and not 1 <= self.direct_port <= 65535:
            raise ValueError(f"direct_port is {self.direct_port}, expected 1 to 65535; leave it out for none")
        if self.direct_port is not None and self.max_replicas is not None:
            raise ValueError(
                "direct_port and max_replicas are both given, expected one: Ray does not count what comes "
                "by the direct port; leave one out"
            )
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, expected num_replicas ({self.num_replicas}) or more; "
                "leave it out for a fixed number"
            )
