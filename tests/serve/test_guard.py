"""Requests from elsewhere, too large or too slow are refused, and never hold up the next good one."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from serve.conftest import free_port, serving

from nnx.serve.guard import MAX_BODY, Hosts, allowed_hosts
from nnx.serve.server import MAX_CONNECTIONS

PROMPT = 1.0  # seconds within which a good request must be answered

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (pip install 'nnx[dev]')")


# ---------------------------------------------------------------- where a request comes from


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8000", True),
        ("localhost:8000", True),
        ("LOCALHOST:8000", True),
        ("[::1]:8000", True),
        ("127.0.0.1", False),
        ("127.0.0.1:80", False),
        ("127.0.0.1:8001", False),
        ("evil.example:8000", False),
        ("localhost.evil.example:8000", False),
        ("evil.example", False),
        ("::1:8000", False),
        ("[::1]", False),
        ("", False),
        (":8000", False),
        ("10.0.0.7:8000", False),
    ],
)
def test_only_this_machine_is_a_host(host, allowed):
    assert allowed_hosts("127.0.0.1", 8000).allow(host) is allowed


def test_port_80_need_not_be_named():
    assert allowed_hosts("127.0.0.1", 80).allow("localhost")


def test_on_all_addresses_every_address_is_a_host_but_no_other_name():
    hosts = allowed_hosts("0.0.0.0", 8000)
    assert hosts.allow("10.0.0.7:8000")
    assert hosts.allow("[fe80::1]:8000")
    assert hosts.allow(f"{socket.gethostname()}:8000")
    assert not hosts.allow("evil.example:8000")
    assert not Hosts(("127.0.0.1",), 8000).allow("10.0.0.7:8000")


@pytest.mark.parametrize("path", ["/", "/api/models", "/api/predict", "/openapi.json", "/nothing"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:{port}", "a:b:c"])
def test_another_host_is_refused(served, path, host):
    response = served.client.get(path, headers={"Host": host.format(port=served.port)})
    assert response.status_code == 403
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize("origin", ["null", "http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1", ""])
def test_another_origin_is_refused(served, origin):
    headers = {"Origin": origin.format(port=served.port)}
    assert served.client.post("/api/predict", json={"sample": 0}, headers=headers).status_code == 403


def test_the_own_origin_is_allowed(served):
    for name in ("127.0.0.1", "localhost"):
        headers = {"Host": f"{name}:{served.port}", "Origin": f"http://{name}:{served.port}"}
        response = served.client.post("/api/predict", json={"sample": 0}, headers=headers)
        assert response.status_code == 200
        assert "access-control-allow-origin" not in response.headers
    crossed = {"Host": f"localhost:{served.port}", "Origin": f"http://127.0.0.1:{served.port}"}
    assert served.client.post("/api/predict", json={"sample": 0}, headers=crossed).status_code == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_a_form_is_refused(served, kind):
    headers = {"Content-Type": kind} if kind else {}
    assert served.client.post("/api/predict", content=b'{"sample": 0}', headers=headers).status_code == 415


@pytest.mark.parametrize("path", ["/", "/style.css", "/api/models", "/nothing", "/healthz"])
def test_every_response_carries_the_policy(served, path):
    headers = served.client.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_a_refusal_carries_the_policy_too(served):
    assert "content-security-policy" in served.client.get("/", headers={"Host": "x"}).headers


# ---------------------------------------------------------------- what is in it


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 40_000,
        b"9" * 10_000,
        b"NaN",
        b'{"sample": NaN}',
        b'{"sample": -1}',
        b'{"sample": 1e400}',
        b'{"sample": 9' + b"9" * 5000 + b"}",
        b'{"sample": 9007199254740992}',
        b'{"sample": 360}',
        b'{"sample": 0, "image": "aaaa"}',
        b'{"image": "not base64!"}',
        b'{"image": ""}',
        b'{"image": "AAAA"}',
        b'{"row": {"a": "1"}}',
        b'{"row": {"\\ud800": "1"}}',
        b'{"sample": 0, "models": ["nobody"]}',
        b'{"sample": 0, "models": ["\\ud800"]}',
        b'{"sample": 0, "\\ud800": 1}',
        b'{"sample": 0, "parts": ["all"]}',
        b'{"sample": "0"}',
        b'{"sample": true}',
        b'{"image": "' + b"A" * 200_000 + b'"}',
    ],
    ids=lambda body: body[:30].decode("latin-1"),
)
def test_a_wrong_body_is_refused_as_json(served, body):
    response = served.client.post("/api/predict", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 404, 422)
    error = response.json()["error"]
    assert error
    assert not re.search(r"Traceback|\.py|/home|/tmp|/usr", error)


def test_an_image_of_many_pixels_is_refused(served):
    import base64
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("1", (6000, 6000)).save(buffer, "PNG")
    response = served.ask(image=base64.b64encode(buffer.getvalue()).decode())
    assert response.status_code == 422
    assert "megapixels" in response.json()["error"]


def test_unknown_paths_and_methods_are_json(served):
    assert served.client.get("/nothing").json() == {"error": "Not Found"}
    assert served.client.get("/../../etc/passwd").status_code == 404
    assert served.client.get("/%2e%2e/%2e%2e/etc/passwd").status_code == 404
    assert served.client.delete("/api/models").status_code == 405
    assert served.client.get("/redoc").status_code == 404


def test_the_description_names_every_path_and_loads_nothing_from_elsewhere(served):
    description = served.client.get("/openapi.json").json()
    assert set(description["paths"]) == {"/healthz", "/api/models", "/api/predict", "/api/sample"}
    assert "http" not in served.client.get("/docs").text


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_breaks_it_whether_it_fits_the_description_or_not(served, mode):
    description = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    modes = schemathesis.GenerationMode(mode)
    checked = []
    for operation in (result.ok() for result in description.get_all_operations()):

        @settings(max_examples=40, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=modes))
        def check(case):
            path = case.operation.path
            response = case.call()
            checked.append(path)
            assert response.status_code < 500
            documented = description.raw_schema["paths"][path][case.method.lower()]["responses"]
            assert str(response.status_code) in {*documented, "405"}
            assert response.status_code == 200 or set(response.json()) == {"error"}

        with contextlib.suppress(Unsatisfiable):  # nothing can be wrong with a request without parameters
            check()
    assert "/api/predict" in checked


# ---------------------------------------------------------------- how much, how slowly


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [MAX_BODY + 1, 10 * MAX_BODY])
def test_a_body_that_is_too_large_is_refused(served, chunked, size):
    content = (b"x" * 10_000 for _ in range(size // 10_000 + 1)) if chunked else b"x" * size
    response = served.client.post("/api/predict", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert response.json() == {"error": "the body is larger than 256 kB"}


def answered_within(served, seconds: float) -> bool:
    """Whether a new client gets an answer in time."""
    begun = time.monotonic()
    with httpx.Client(base_url=served.url, timeout=30) as client:
        assert client.post("/api/predict", json={"sample": 1}).status_code == 200
    return time.monotonic() - begun < seconds


def test_idle_connections_do_not_keep_others_out(served):
    idle = [served.connect() for _ in range(300)]
    try:
        assert len(idle) > MAX_CONNECTIONS
        assert all(answered_within(served, PROMPT) for _ in range(5))
    finally:
        for connection in idle:
            connection.close()


def test_slow_senders_do_not_keep_others_out(served):
    head = f"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n".encode()
    body = head + b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"
    slow = []
    done = threading.Event()

    def drip() -> None:
        while not done.wait(0.1):
            for connection, what in slow:
                with contextlib.suppress(OSError):
                    connection.send(what)

    for n in range(150):
        connection = served.connect()
        connection.sendall(body if n % 2 else head)
        slow.append((connection, b" " if n % 2 else b"X-A: b\r\n"))
    thread = threading.Thread(target=drip)
    thread.start()
    try:
        assert all(answered_within(served, PROMPT) for _ in range(5))
    finally:
        done.set()
        thread.join()
        for connection, _ in slow:
            connection.close()


def test_more_unfinished_bodies_than_connections_do_not_keep_others_out(served):
    head = f"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Type: application/json\r\n"
    stalled = []
    try:
        for _ in range(MAX_CONNECTIONS + 20):
            connection = served.connect()
            with contextlib.suppress(OSError):
                connection.sendall(f"{head}Content-Length: 100000\r\n\r\n{{".encode())
            stalled.append(connection)
        assert all(answered_within(served, PROMPT) for _ in range(5))
    finally:
        for connection in stalled:
            connection.close()


def test_endless_bodies_do_not_keep_others_out(served):
    head = f"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Type: application/json\r\n"
    done = threading.Event()

    def flood() -> None:
        while not done.is_set():
            with served.connect() as connection:
                try:
                    connection.sendall(f"{head}Content-Length: {10**12}\r\n\r\n".encode())
                    while not done.is_set():
                        connection.sendall(b"x" * 65536)
                except OSError:
                    pass

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert all(answered_within(served, PROMPT) for _ in range(5))
    finally:
        done.set()
        for thread in threads:
            thread.join()


def received(connection: socket.socket) -> bytes:
    """All until the server closes the connection."""
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n"])
def test_a_connection_without_a_request_is_closed(served, sent):
    with served.connect() as connection:
        connection.sendall(sent)
        connection.settimeout(30)
        begun = time.monotonic()
        assert received(connection) == b""
        assert 15 < time.monotonic() - begun < 25


@pytest.mark.slow
def test_a_body_that_does_not_arrive_is_refused(served):
    with served.connect() as connection:
        head = f"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 10\r\n\r\n{{".encode())
        assert received(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "sent",
    [b"\x00" * 100, b"GET / HTTP/9\r\n\r\n", b"GET /" + b"a" * 100_000, b"GET / HTTP/1.1\r\nA:" + b"b" * 100_000],
)
def test_what_is_not_http_is_refused(served, sent):
    with served.connect() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(sent)
        connection.settimeout(5)
        answer = received(connection)
        assert not answer or answer.startswith(b"HTTP/1.1 400 ")
    assert answered_within(served, PROMPT)


# ---------------------------------------------------------------- start and end


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_within_two_seconds(trained, number, code):
    with serving(trained / "mlp") as served:
        open_connections = [served.connect() for _ in range(5)]
        served.client.get("/")
        open_connections[0].sendall(b"GET / HT")
        open_connections[1].sendall(
            f"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n"
            "Content-Type: application/json\r\nContent-Length: 9\r\n\r\n".encode()
        )
        time.sleep(0.2)
        begun = time.monotonic()
        served.process.send_signal(number)
        assert served.process.wait(10) == code
        assert time.monotonic() - begun < 2
        assert "Traceback" not in served.process.stderr.read()
        for connection in open_connections:
            connection.close()


def run_serve(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nnx", "serve", *map(str, words), "--no-open"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_busy_port_is_named_with_the_cure(trained):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        result = run_serve(trained / "mlp", "--port", port)
    assert result.returncode == 3
    assert f"error: --port {port}: is in use by another program" in result.stderr
    assert f"--port {port + 1}" in result.stderr
    assert result.stdout == ""


def test_an_address_that_is_none_or_not_this_machines_is_refused(trained):
    for host in ("evil.example", "203.0.113.7"):
        result = run_serve(trained / "mlp", "--host", host, "--port", free_port())
        assert result.returncode == 2
        assert result.stderr.startswith(f"error: --host {host}: ")


def test_another_bind_warns(trained):
    with serving(trained / "mlp", "--host", "0.0.0.0") as served:
        pass
    assert "warning: --host 0.0.0.0" in served.process.stderr.read()


def test_a_missing_extra_is_named(trained, monkeypatch, capsys):
    import importlib.util

    from nnx.cli import run_command

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else found(name, *more)
    )
    monkeypatch.setattr(sys, "argv", ["nnx", "serve", str(trained / "mlp")])
    assert run_command() == 3
    assert "nnx serve: needs uvicorn, which is not installed; run: pip install 'nnx[serve]'" in capsys.readouterr().err


def test_the_port_is_checked(trained):
    assert run_serve(trained / "mlp", "--port", "0").returncode == 2
    assert run_serve(trained / "mlp", "--port", "70000").returncode == 2


def test_errors_name_no_path(served):
    text = json.dumps([served.ask(image="AAAA").json(), served.ask(sample=10**6).json()])
    assert "/" not in text.replace("GET /api/models", "")
