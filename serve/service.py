"""The service as Ray Serve deployments: replicas that answer, and the one ledger that they share."""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from cluster.errors import UserError
from serve.access.keyfile import Keys, Limits, read_keys
from serve.access.quotas import Refusal
from serve.api import make_api
from serve.backend import Backend, limits_of
from serve.catalog import Load
from serve.config import ServiceConfig
from serve.gate import read_overrides
from serve.ledger import LocalLedger
from vaegan.acceleration import keep_freed_memory
from vaegan.registry import Registry
from vaegan.sampler import Sampler

ROOM_FOR_SMALL_REQUESTS = 32
"""Requests that a replica takes beyond those that sample: health checks and lists go on while sampling is full."""
DRAIN_S = 120.0
"""How long a replica that should stop may go on with what it has begun."""


def check(config: ServiceConfig) -> tuple[ServiceConfig, Keys | None]:
    """Find an operator's mistakes before anything starts; paths become absolute, since replicas run elsewhere.

    Raises:
        UserError: no registry, nothing in it, keys or overrides that can't be used, a device that isn't there.
    """
    absolute = {
        name: path.resolve()
        for name in ("registry", "api_keys", "gate_overrides", "state")
        if (path := getattr(config, name)) is not None
    }
    config = replace(config, **absolute)
    if not Registry(config.registry).models():
        raise UserError(
            f"no model in {config.registry}: expected NAME/VERSION/model.json; publish one from a finished run"
        )
    if config.gate_overrides is not None:
        read_overrides(config.gate_overrides)
    if config.state is not None:
        try:
            config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"state={config.state}: {error.strerror}; choose a folder that can be written") from None
    try:
        if torch.device(config.device).type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device is {config.device} and there is no GPU here, expected cpu; leave device out")
    except RuntimeError:
        raise UserError(f"device is {config.device}, expected cpu or cuda; leave it out for cpu") from None
    return config, read_keys(config.api_keys)


class LedgerService:
    """The ledger as a deployment of one replica, which Ray Serve starts again should it die."""

    def __init__(self, limits: Mapping[str, Limits], state: Path | None) -> None:
        self.ledger = LocalLedger(limits, state)

    async def take(self, key: str, images: int) -> Refusal | None:
        return await self.ledger.take(key, images)

    async def give_back(self, key: str, images: int) -> None:
        await self.ledger.give_back(key, images)

    async def limits_are(self, limits: Mapping[str, Limits]) -> None:
        await self.ledger.limits_are(limits)

    async def exchange(self, replica: str, numbers: bytes) -> Mapping[str, bytes]:
        return await self.ledger.exchange(replica, numbers)

    def __del__(self) -> None:
        self.ledger.close()


class RemoteLedger:
    """The ledger as a replica sees it; keys without limits cost no call."""

    def __init__(self, handle: DeploymentHandle[LedgerService], limits: Mapping[str, Limits]) -> None:
        self.handle, self.limited = handle, _limited(limits)

    async def take(self, key: str, images: int) -> Refusal | None:
        return await self.handle.take.remote(key, images) if key in self.limited else None

    async def give_back(self, key: str, images: int) -> None:
        if key in self.limited:
            await self.handle.give_back.remote(key, images)

    async def limits_are(self, limits: Mapping[str, Limits]) -> None:
        await self.handle.limits_are.remote(limits)
        self.limited = _limited(limits)

    async def exchange(self, replica: str, numbers: bytes) -> Mapping[str, bytes]:
        return await self.handle.exchange.remote(replica, numbers)


def _limited(limits: Mapping[str, Limits]) -> frozenset[str]:
    return frozenset(name for name, value in limits.items() if value != Limits())


class SamplingService:
    """One replica: a few models on one device."""

    def __init__(self, config: ServiceConfig, keys: Keys | None, ledger: DeploymentHandle[LedgerService]) -> None:
        keep_freed_memory()  # a quarter of a forward pass otherwise goes into getting the same memory again
        replica = re.sub(r"[^A-Za-z0-9._-]", "-", ray_serve.get_replica_context().replica_tag)[-100:]
        shared = RemoteLedger(ledger, limits_of(keys))
        self.backend = Backend(config, keys, ledger=shared, replica=replica, keep=_multiplexed)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        # Ray's proxy puts the request's id on the answer.
        return make_api(self.backend, sends_request_id=False)

    async def check_health(self) -> None:
        self.backend.check_health()


def _multiplexed(load: Callable[[str], Sampler], size: int) -> Load:
    """Keeps the last `size` models, and tells Ray Serve which, so that requests that name one are sent to it."""

    @ray_serve.multiplexed(max_num_models_per_replica=size)
    async def load_model(model_id: str) -> Sampler:
        return await asyncio.to_thread(load, model_id)

    return load_model


def deployment(config: ServiceConfig) -> Application:
    """The Ray Serve application.

    Raises:
        UserError: see `check`.
    """
    config, keys = check(config)
    logs = {"encoding": config.log_format.upper(), "enable_access_log": False}  # ours says more of each request
    ledger = ray_serve.deployment(
        name="Ledger",
        num_replicas=1,
        max_ongoing_requests=1000,
        logging_config=logs,
        ray_actor_options={"num_cpus": 0},
    )(LedgerService)
    on_gpu = torch.device(config.device).type == "cuda"
    scaling: dict[str, Any] = {"num_replicas": config.num_replicas}
    if config.max_replicas is not None:
        # Of the requests that wait or run in a replica; beyond a few, its batches are full.
        policy = AutoscalingConfig(
            min_replicas=config.num_replicas, max_replicas=config.max_replicas, target_ongoing_requests=8
        )
        scaling = {"autoscaling_config": policy}
    service = ray_serve.deployment(
        name="SamplingService",
        max_ongoing_requests=config.max_waiting + ROOM_FOR_SMALL_REQUESTS,
        max_queued_requests=config.max_waiting,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        graceful_shutdown_timeout_s=DRAIN_S,
        logging_config=logs,
        health_check_period_s=5,
        health_check_timeout_s=30,
        ray_actor_options={"num_cpus": 1, "num_gpus": config.gpus if on_gpu else 0},
        **scaling,
    )(ray_serve.ingress()(SamplingService))
    return service.bind(config, keys, ledger.bind(limits_of(keys), config.state))
