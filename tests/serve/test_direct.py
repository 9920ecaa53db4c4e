"""Replicas' own port: shared by processes, and closed without losing what has begun."""

import asyncio
import socket

import httpx
import pytest

from cluster.session import free_port
from serve.direct import listening, shared_socket


def test_several_replicas_listen_on_one_port_and_each_answers():
    async def scenario() -> set[bytes]:
        port = free_port()

        def app(name: bytes):
            async def answer(scope, receive, send) -> None:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": name})

            return answer

        async with listening(app(b"one"), "127.0.0.1", port), listening(app(b"two"), "127.0.0.1", port):
            names = set()
            for _ in range(200):  # a connection each: the kernel chooses
                async with httpx.AsyncClient() as client:
                    names.add((await client.get(f"http://127.0.0.1:{port}/")).content)
                if len(names) == 2:
                    break
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient() as client:
                await client.get(f"http://127.0.0.1:{port}/")
        return names

    assert asyncio.run(scenario()) == {b"one", b"two"}


def test_a_request_that_has_begun_is_finished_before_the_port_is_gone():
    async def scenario() -> bytes:
        port, began, free = free_port(), asyncio.Event(), asyncio.Event()

        async def app(scope, receive, send) -> None:
            began.set()
            await free.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"whole"})

        async with httpx.AsyncClient() as client:
            async with listening(app, "127.0.0.1", port):
                answer = asyncio.create_task(client.get(f"http://127.0.0.1:{port}/"))
                await began.wait()
                asyncio.get_running_loop().call_later(0.3, free.set)
            return (await answer).content

    assert asyncio.run(scenario()) == b"whole"


def test_a_port_that_another_program_has_is_an_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            shared_socket("127.0.0.1", taken.getsockname()[1])
