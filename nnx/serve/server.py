"""The server: uvicorn with a limit on connections and on the time that each may take, on a socket of our own.

uvicorn alone keeps a connection without a request for ever, and refuses new ones beyond its limit. Here the oldest
that waits gives way to a new one.
"""

import errno
import socket
from asyncio import BaseTransport
from collections.abc import Callable
from typing import cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nnx.errors import InputError, MachineError
from nnx.serve.guard import Guard
from nnx.system import platform

MAX_CONNECTIONS = 200
REQUEST_SECONDS = 20.0  # until a connection must have sent the head of a request, the first or the next
ANSWER_SECONDS = 60.0  # until the body must have been sent, and the answer made and received
MAX_HEAD = 16_384  # bytes of a request without its body
HIGHEST_PORT = 65535
GRACE = 1  # seconds for answers under way when the server ends


def bind(host: str, port: int) -> socket.socket:
    """A socket on this address. Raises MachineError if the port is in use, and InputError for an address that this
    machine does not have."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        platform.claim_port(listener)
        listener.bind(address)
        listener.listen(socket.SOMAXCONN)  # so that a second server fails here, not later
    except OSError as error:
        if listener:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            other = port + 1 if port < HIGHEST_PORT else port - 1
            raise MachineError(
                f"--port {port}: is in use by another program; end that, or choose another: --port {other}"
            ) from None
        if error.errno == errno.EACCES:
            raise MachineError(f"--port {port}: needs a privilege; choose one from 1024, such as 8000") from None
        raise InputError(f"--host {host}: is no address of this machine ({error.strerror}); try 127.0.0.1") from None
    return listener


def serve(application: Guard, listener: socket.socket, started: Callable[[], None]) -> None:
    """Serve until a signal ends it. Calls `started` once requests are answered."""
    config = uvicorn.Config(
        application,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # the application prints its own errors
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(REQUEST_SECONDS),
        timeout_graceful_shutdown=GRACE,
        h11_max_incomplete_event_size=MAX_HEAD,
    )
    _Server(config, started).run([listener])


class _Server(uvicorn.Server):
    """Ends connections whose time is over."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._when_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._when_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Without waiting for bodies that have not arrived."""
        for connection in list(self.server_state.connections):
            if connection.cycle and connection.cycle.more_body:  # type: ignore[union-attr]
                connection.transport.abort()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """uvicorn calls it ten times a second."""
        for connection in list(self.server_state.connections):
            cast(Connection, connection).check_time()
        return await super().on_tick(counter)


class Connection(H11Protocol):
    """A connection with a time limit. Beyond MAX_CONNECTIONS, the one that waits longest for its client is closed."""

    since = 0.0  # when it was made, or its last answer completed, in the event loop's time

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.since = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            others = [cast(Connection, each) for each in self.connections if each is not self]
            waiting = [each for each in others if each.is_waiting or each.awaits_body]
            oldest = min(waiting, key=lambda each: each.since, default=self)
            oldest.transport.abort()

    @property
    def is_waiting(self) -> bool:
        """Whether the next request has not begun, or its head is incomplete."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def awaits_body(self) -> bool:
        return self.cycle is not None and self.cycle.more_body

    def check_time(self) -> None:
        limit = REQUEST_SECONDS if self.is_waiting else ANSWER_SECONDS
        if self.loop.time() - self.since > limit:
            self.transport.abort()

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()
