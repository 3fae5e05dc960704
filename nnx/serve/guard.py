"""Refuses requests that do not come from the page or from a program on this machine, and those that are too large.

A web page that is open in the same browser could send requests here, too. Without CORS, it can't read the answers.
Its POSTs carry its own Origin, and must have the type of JSON, which a form can't send. Where a name of its own leads
to this machine (DNS rebinding), Host is that name.
"""

import asyncio
import ipaddress
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 256_000  # bytes
DISCARDED = 16 * MAX_BODY  # of a larger body are read before the refusal, so that it reaches a client that still sends
BODY_SECONDS = 10.0  # until the body must have arrived
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
REFUSALS = {
    400: "not a request that can be read",
    403: "not from this page or this machine: wrong Host or Origin",
    408: f"the body did not arrive within {BODY_SECONDS:.0f} s",
    413: f"the body is larger than {MAX_BODY // 1000} kB",
    415: "the Content-Type is not application/json",
    422: "a wrong input",
}
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Hosts:
    """The values of Host that are allowed: those of `names` with the port.

    With `any_address`, also every IP address: a page of somebody else's can't have one as its name and lead here.
    """

    names: tuple[str, ...]
    port: int
    any_address: bool = False

    def allow(self, host: str) -> bool:
        name, separator, port = host.rpartition(":")
        if not separator or name.endswith(":") or (name.startswith("[") and not name.endswith("]")):
            name, port = host, "80"
        if port != str(self.port):
            return False
        return name.lower() in self.names or (self.any_address and _is_address(name))


def allowed_hosts(address: str, port: int) -> Hosts:
    """The hosts that a server on this address is called by."""
    own = f"[{address}]" if ":" in address else address
    if ipaddress.ip_address(address).is_unspecified:
        return Hosts((*LOOPBACK, socket.gethostname().lower()), port, any_address=True)
    return Hosts((*LOOPBACK, own.lower()), port)


class Guard:
    """The application behind these checks. Adds its headers to every response."""

    def __init__(self, application: ASGIApp, hosts: Hosts) -> None:
        self.application = application
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        status, reason = self._check(scope)
        if status:
            await _discard(receive)
            await _refuse(send_with_headers, status, reason)
            return
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _read(receive)
        except TimeoutError:
            await _refuse(send_with_headers, 408, REFUSALS[408])
            return
        if body is None:
            return  # the client has gone
        if len(body) > MAX_BODY:
            await _refuse(send_with_headers, 413, REFUSALS[413])
            return
        await self.application(scope, _replay(body, receive), send_with_headers)

    def _check(self, scope: Scope) -> tuple[int, str]:
        """The status and the reason of a refusal, or 0 and ""."""
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if len(hosts) != 1 or not self.hosts.allow(hosts[0]):
            return 403, f"Host is not one of {', '.join(self.hosts.names)} with port {self.hosts.port}"
        if scope["method"] in ("GET", "HEAD"):
            return 0, ""
        if origins and origins != [f"http://{hosts[0]}"]:
            return 403, f"Origin is not http://{hosts[0]}"
        kinds = [value.partition(";")[0].strip().lower() for value in _values(scope, b"content-type")]
        if scope["method"] == "POST" and kinds != ["application/json"]:
            return 415, REFUSALS[415]
        return 0, ""


def _values(scope: Scope, name: bytes) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1") for key, value in headers if key == name]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


async def _read(receive: Receive) -> bytes | None:
    """The body, or None if the client has gone. Of a body that is too large, the beginning, but more than MAX_BODY."""
    body = bytearray()
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        length += len(part)
        if len(body) <= MAX_BODY:
            body += part
        if not message.get("more_body") or length > DISCARDED:
            return bytes(body)


async def _discard(receive: Receive) -> None:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            await _read(receive)
    except TimeoutError:
        pass


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns a body that was read already."""
    bodies = [body]

    async def replayed() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return await receive()

    return replayed


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
