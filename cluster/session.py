"""The Ray cluster a command runs on: one of its own, or one that runs already."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.exceptions import AuthenticationError

from cluster.config import ClusterConfig
from cluster.errors import UserError

CONNECT_TIMEOUT_S = 5.0
"""How long a head may take to answer a TCP connection. Ray itself retries for minutes in silence."""
NAMESPACE = "augray"
"""Names of detached actors are unique in here, so that they don't meet those of other users of a shared cluster."""


@contextmanager
def connect(config: ClusterConfig | None = None) -> Iterator[None]:
    """Connect this process to a Ray cluster for as long as the context lasts.

    Where `ray.init` was called before, that connection is used and left as it was. Else `config.address` decides,
    or RAY_ADDRESS where it is None, which a submitted job has; with neither, a cluster of our own starts on this
    machine, listens on loopback alone, and ends with the context. A cluster that was joined goes on.

    Raises:
        UserError: no head answers at the address, or it refuses us.
    """
    config = config or ClusterConfig()
    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    start = _own_cluster(config) if address == "local" else _running_cluster(address)
    with start:
        try:
            yield
        finally:
            ray.shutdown()  # ends what ray.init started; from a cluster that was joined it only disconnects


def free_port() -> int:
    """A TCP port on loopback that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def check_answers(host: str, port: int, remedy: str) -> None:
    """Raise a `UserError` that ends in `remedy` unless something accepts TCP connections at host:port."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"nothing answers at {host}:{port} ({reason}): expected a Ray head; {remedy}") from None


def access_token() -> str | None:
    """This user's token for Ray heads, found where Ray finds it; None where there is none or RAY_AUTH_MODE is off."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    token = os.environ.get("RAY_AUTH_TOKEN")
    if token is None:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
        token = path.read_text(encoding="utf-8") if path.is_file() else ""
    return token.strip() or None


def refused(address: str) -> UserError:
    """What to tell a user whose access token is missing or wrong."""
    found = "this user's access token" if access_token() else "a user without an access token"
    return UserError(
        f"the Ray head at {address} refuses {found}: copy the head's ~/.ray/auth_token to a file that only you can "
        "read, name it in RAY_AUTH_TOKEN_PATH and set RAY_AUTH_MODE=token"
    )


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables for as long as the context lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _own_cluster(config: ClusterConfig) -> Iterator[None]:
    dashboard_port = free_port()
    with (
        _loopback_only(),
        # Workers inherit these. Ray Train's clean-up actor asks "the" dashboard whether its run is alive; without the
        # first it may ask that of another cluster on this machine, be told no, and end the run.
        environment(RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{dashboard_port}", RAY_USAGE_STATS_ENABLED="0"),
    ):
        _write_private_token()
        _quiet_about_tokens()
        ray.init(
            address="local",
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=dashboard_port,
            logging_level=logging.WARNING,
            log_to_driver=False,
            namespace=NAMESPACE,
            _node_ip_address="127.0.0.1",
        )
        yield


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Let Ray believe that it can't span machines, as on macOS: else a dozen of its ports face the whole network."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    with environment(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0"):  # read by the processes that ray.init starts
        ray_constants.ENABLE_RAY_CLUSTER = False  # this process has read it when it imported ray
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _running_cluster(address: str) -> Iterator[None]:
    remedy = (
        "start one with `ray start --head`, give its host:port (port 6379 unless --port said otherwise) as the "
        'address or in RAY_ADDRESS, or give "local" to use this machine alone'
    )
    runtime_env: dict[str, dict[str, str]] = {}
    if address != "auto":
        host, port = _host_and_port(address)
        check_answers(host, port, remedy)
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            _check_is_head(address, remedy)
        # Told to workers for the reason given in _own_cluster; setting it here too would outlive nothing.
        runtime_env = {"env_vars": {"RAY_ADDRESS": address}}
    _quiet_about_tokens()
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # ray.init does so for "auto" alone
    try:
        ray.init(
            address=address,
            logging_level=logging.WARNING,
            log_to_driver=False,
            namespace=NAMESPACE,
            runtime_env=runtime_env,
        )
    except AuthenticationError:
        raise refused(address) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"can't join the Ray cluster at {address} ({_first_sentence(error)}); {remedy}") from None
    yield


def _check_is_head(address: str, remedy: str) -> None:
    """Ask a Ray head one harmless question. `ray.init` would try a stranger's port, or a wrong token, for minutes."""
    token = access_token()
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", timeout=CONNECT_TIMEOUT_S, metadata=[("authorization", f"Bearer {token}")] if token else None)
        except grpc.RpcError as error:
            code = error.code()
            if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                raise refused(address) from None
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise UserError(
                    f"what answers at {address} isn't a Ray head (it may be its dashboard); {remedy}"
                ) from None


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if "://" in address or not (host and colon and port.isdigit()):
        raise UserError(
            f"{address!r} isn't the address of a Ray head: expected host:port such as 10.0.0.1:6379 (not the "
            'dashboard\'s http:// URL, which is for `python -m cluster.submit --address`), "auto" or "local"'
        )
    return host.strip("[]"), int(port)


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")


def _quiet_about_tokens() -> None:
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # "Token authentication is enabled"


def _write_private_token() -> None:
    """Make Ray's access token before Ray does: its own file (2.60) is readable by every user of the machine."""
    path = Path.home() / ".ray" / "auth_token"
    if path.exists() or any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another process was faster
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
