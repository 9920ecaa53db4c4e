"""Start the service.

serve run serve.app:build_app registry=REGISTRY          Ray's own command: 127.0.0.1:8000
python -m serve.app --registry REGISTRY --port 8100      the same with a port of one's choice
"""

import dataclasses
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import httpx
from pydantic import TypeAdapter, ValidationError
from ray import serve as ray_serve
from ray.serve import Application

from cluster.cli import run_command
from cluster.config import ClusterConfig
from cluster.errors import UserError
from cluster.session import connect
from serve.config import ServiceConfig
from serve.security import is_loopback
from serve.service import check, deployment

PORT_OF_SERVE_RUN = 8000  # the default of ray.serve.config.HTTPOptions


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServiceConfig):
    """Serve a registry's models over HTTP until interrupted."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every interface."""
    port: int = PORT_OF_SERVE_RUN
    """Port to listen on."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}, expected 1 to 65535; leave it out for 8000")


class Mistake(click.ClickException):
    """A user's mistake as Ray's command line prints it: one line, no traceback."""

    exit_code = 2


def build_app(args: dict[str, Any]) -> Application:
    """The application for `serve run serve.app:build_app registry=...` and for the `args` of a Serve config file.

    Args:
        args: fields of `ServiceConfig`; text as the command line gives it will do.

    Raises:
        click.ClickException: a mistake in `args`, when Ray's command line asks: it prints the sentence and exits.
        UserError: a mistake in `args`, otherwise.
    """
    command = click.get_current_context(silent=True)
    try:
        application = deployment(parse_arguments(args))
        if command is not None and not (command.params.get("address") or os.environ.get("RAY_ADDRESS")):
            check_port_of_serve_run()
        return application
    except UserError as error:
        if command is None:
            raise
        raise Mistake(str(error)) from None


def parse_arguments(args: dict[str, Any]) -> ServiceConfig:
    """Arguments by name to a config.

    Raises:
        UserError: one is missing, unknown, or no value of its field.
    """
    names = [f.name for f in dataclasses.fields(ServiceConfig)]
    for name in args:
        if name not in names:
            raise UserError(f"unknown argument {name}=, expected some of {', '.join(names)}; correct its name")
    if "registry" not in args:
        raise UserError("registry= is missing, expected a folder of models; add registry=PATH")
    try:
        return TypeAdapter(ServiceConfig).validate_python(args)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # our own check of the values
            raise UserError(str(first["ctx"]["error"])) from None
        name = str(first["loc"][0])
        expected = first["msg"].removeprefix("Input should be ").split(",")[0]
        raise UserError(f"{name}={args[name]} can't be used, expected {expected}; correct it") from None


def run(config: ServeConfig) -> None:
    """Serve until interrupted.

    Raises:
        UserError: see `check`; a port that can't be had; an open service on a network.
    """
    service = ServiceConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(ServiceConfig)})
    _, keys = check(service)
    hosts = (config.host, config.direct_host)
    open_host = next((host for host in hosts if not (is_loopback(host) or host == "localhost")), None)
    if open_host is not None and keys is None and not config.allow_anonymous:
        raise UserError(
            f"host is {open_host} and there are no API keys, expected --api-keys FILE for a service on a network; "
            "add it, or --allow-anonymous to serve everybody"
        )
    check_port(config.host, config.port)
    if config.direct_port is not None:
        check_port(config.direct_host, config.direct_port)
    # Ray runs its workers at niceness 15; a replica has people waiting for it.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with connect(config.cluster):
        ray_serve.start(http_options={"host": config.host, "port": config.port})
        signal.signal(signal.SIGTERM, _interrupt)  # what systemd, Kubernetes and `kill` send; Ray has set its own
        try:
            ray_serve.run(deployment(service), name="augray", route_prefix="/")
            print(f"serving at http://{config.host}:{config.port}/ (end with Ctrl-C)", flush=True)
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            print("stopped", flush=True)
        finally:
            ray_serve.shutdown()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def check_port(host: str, port: int) -> None:
    """Raises UserError when nothing can listen there; Ray would say so in a log file, after a minute."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use, expected a free one; choose another --port") from None
        raise UserError(f"can't listen on {host}:{port} ({os.strerror(error.errno or 0)}); choose another") from None


def check_port_of_serve_run(port: int = PORT_OF_SERVE_RUN) -> None:
    """Raises UserError when the port of `serve run`, which can't be chosen, is taken by another program.

    Ray Serve itself may be there: then this command hands it another application.
    """
    try:
        check_port("127.0.0.1", port)
    except UserError:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/-/healthz", timeout=5).text == "success":
                return
        except httpx.HTTPError:
            pass
        raise UserError(
            f"port {port} of 127.0.0.1 is in use by another program and `serve run` knows no other; "
            "choose one with: python -m serve.app --registry PATH --port PORT"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(ServeConfig, run, prog="python -m serve.app", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
