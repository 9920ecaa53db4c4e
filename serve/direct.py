"""A replica's own HTTP port, past Ray's proxy, whose hop costs a lone request several milliseconds.

All replicas of a host listen on the same port (SO_REUSEPORT), and the kernel shares connections out among them. Ray
neither sees these requests nor counts them: what bounds them is the service's own `max_waiting`.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

KEEP_ALIVE_S = 30
DRAIN_S = 60
"""How long requests that have begun may go on after the port was closed."""

logger = logging.getLogger("ray.serve")  # Ray Serve writes this one to a replica's log


@asynccontextmanager
async def listening(app: ASGIApp, host: str, port: int) -> AsyncIterator[None]:
    """Answer at host:port while the context is open; at its end finish what has begun, and take nothing new.

    Raises:
        OSError: the port can't be had.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",  # the application has been started already
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
        )
    )
    listener = shared_socket(host, port)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    logger.info("listening on %s:%d besides Ray's proxy", host, port)
    try:
        yield
    finally:
        server.should_exit = True
        await serving
        listener.close()


def shared_socket(host: str, port: int) -> socket.socket:
    """A listening socket on an address that other processes of this user may listen on too."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener
