"""The service as a Ray Serve deployment: what each replica loads and how many requests it takes."""

from dataclasses import replace

import torch
from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig

from cluster.errors import UserError
from serve.api import ServiceConfig, make_api
from serve.catalog import Catalog
from serve.security import read_keys
from vaegan.registry import Registry

ROOM_FOR_SMALL_REQUESTS = 32
"""Requests that a replica takes beyond those that sample: health checks and lists go on while sampling is full."""


def check(config: ServiceConfig) -> tuple[ServiceConfig, frozenset[str] | None]:
    """Find an operator's mistakes before anything starts; paths become absolute, keys become digests.

    Raises:
        UserError: no registry, nothing in it, a key file that can't be used, a device that isn't there.
    """
    config = replace(config, registry=config.registry.resolve())
    if not Registry(config.registry).models():
        raise UserError(
            f"no model in {config.registry}: expected NAME/VERSION/model.json; publish one from a finished run"
        )
    try:
        if torch.device(config.device).type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device is {config.device} and there is no GPU here, expected cpu; leave device out")
    except RuntimeError:
        raise UserError(f"device is {config.device}, expected cpu or cuda; leave it out for cpu") from None
    return config, None if config.api_keys is None else read_keys(config.api_keys)


def deployment(config: ServiceConfig) -> Application:
    """The Ray Serve application: each replica loads every model, then answers.

    Raises:
        UserError: see `check`.
    """
    config, key_digests = check(config)

    def build_api() -> FastAPI:  # runs in the replica
        torch.set_num_threads(config.torch_threads)
        return make_api(Catalog.load(config.registry, config.device), config, key_digests)

    # An ingress around no class of ours: the routes are plain functions over a catalog, as make_api built them.
    service = ray_serve.deployment(
        name="SamplingService",
        num_replicas=config.num_replicas,
        max_ongoing_requests=config.max_waiting + ROOM_FOR_SMALL_REQUESTS,
        max_queued_requests=config.max_waiting,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if torch.device(config.device).type == "cuda" else 0},
    )
    return service(ray_serve.ingress(build_api)()).bind()
