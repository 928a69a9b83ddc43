"""The three clients against an endpoint that misbehaves in every known way: nothing hangs, no partial response becomes a reply.

See also tests/data_prep/generate: transient errors are retried until a good reply comes (test_workers.py); a redirect does not
forward the key, and no traceback shows it (test_security.py).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from data_prep.generate import dispatcher, workers
from data_prep.generate.clients.base import known_generators
from data_prep.outcomes import UserError
from data_prep.stand_in.messages import gemini_reply, openai_reply
from tests.data_prep.generate.conftest import KEY, WORDS, Outcomes, Shop, make_shop, settings_for

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("generator", known_generators())]

Behavior = Callable[[socket.socket], None]

PAIRS = json.dumps([{"question": f"What is the {w} thing?", "answer": w, "category": "easy"} for w in WORDS])


@pytest.fixture(autouse=True)
def direct_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between client and test server, short pauses, and a key."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(dispatcher, "_FIRST_PAUSE", 0.01)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return make_shop(tmp_path / "shop", 2)


class Endpoint:
    """A server that reads each whole request and then runs a test's code on the raw connection."""

    def __init__(self, behave: Behavior, context: ssl.SSLContext | None = None, port: int = 0) -> None:
        self._behave, self._context = behave, context
        self._listening = socket.create_server(("127.0.0.1", port))
        self.url = f"{'https' if context else 'http'}://localhost:{self._listening.getsockname()[1]}"
        self.requests, self._counting = 0, threading.Lock()
        self.over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            head, _, body = self._read_head(connection).partition(b"\r\n\r\n")
            if not head:
                return
            (length,) = (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            while len(body) < length:
                body += connection.recv(65536)
            with self._counting:
                self.requests += 1
            self._behave(connection)

    def _read_head(self, connection: socket.socket) -> bytes:
        received = b""
        while b"\r\n\r\n" not in received:
            more = connection.recv(65536)
            if not more:
                return b""
            received += more
        return received

    def close(self) -> None:
        self.over.set()
        self._listening.close()


@contextlib.contextmanager
def endpoint(behave: Behavior, context: ssl.SSLContext | None = None) -> Iterator[Endpoint]:
    server = Endpoint(behave, context)
    try:
        yield server
    finally:
        server.close()


def after_a_good_reply(generator: str, behave: Behavior) -> Behavior:
    """The first request is answered well. A failure of every request would be the server's, not a product's."""
    first = iter((True,))

    def both(connection: socket.socket) -> None:
        if next(first, False):
            connection.sendall(answer(good_reply(generator)))
        else:
            behave(connection)

    return both


def ask(shop: Shop, generator: str, url: str, outcomes: Outcomes | None = None, **changes: Any) -> Outcomes:
    outcomes = outcomes or Outcomes()
    settings = settings_for(url, generator=generator, **{"timeout": 0.6, "max_retries": 2, **changes})
    workers.generate_all(
        outcomes.todos(shop.products),
        image_root=shop.root,
        settings=settings,
        ledger=shop.ledger,
        quota_folder=shop.quota,
    )
    return outcomes


def answer(body: bytes, head: bytes = b"", status: bytes = b"200 OK", length: int | None = None) -> bytes:
    """A complete HTTP response that ends its connection; ``length`` overrides the Content-Length."""
    stated = b"content-length: %d\r\n" % (len(body) if length is None else length)
    return b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-type: application/json\r\n%s%s\r\n%s" % (
        status,
        stated,
        head,
        body,
    )


def good_reply(generator: str) -> bytes:
    shape = openai_reply if generator == "openai_compatible" else gemini_reply
    return json.dumps(shape(PAIRS, "STOP", "m")).encode()


def drip(connection: socket.socket, data: bytes) -> None:
    """One byte per second, so no timeout between bytes ever fires."""
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(1.0)


def chunked(body: bytes) -> bytes:
    """The whole body as one chunk, without the terminating chunk."""
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body)


def without_length(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + body


def reset(connection: socket.socket) -> None:
    """Reset the connection, as a crashed machine does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


# What the server sends instead of a good reply, and the reason that is counted.
BODIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "HTML": (lambda good: answer(b"<html>Sign in to the network</html>"), "not_json"),
    "an empty body": (lambda good: answer(b""), "not_json"),
    "JSON of another shape": (lambda good: answer(b'[{"candidates": 7}]'), "not_json"),
    "an empty object": (lambda good: answer(b"{}"), "not_json"),
    "an error without a status": (lambda good: answer(b'{"error": "try later"}'), "not_json"),
    "JSON that is no object": (lambda good: answer(b"null"), "not_json"),
    "bytes that are no text": (lambda good: answer(b'{"\xff\xfe\x00'), "not_json"),
    "gzip that is none": (lambda good: answer(good, b"content-encoding: gzip\r\n"), "connection"),
    "a body closed in the middle": (lambda good: answer(good[:-40], length=len(good)), "connection"),
    "a whole reply, shorter than was said": (lambda good: answer(good, length=len(good) + 100), "connection"),
    "chunks that do not end": (chunked, "connection"),
    "half a body of unknown length": (lambda good: without_length(good[: len(good) // 2]), "not_json"),
    "nothing": (lambda good: b"", "connection"),
    "half a status line": (lambda good: b"HTT", "connection"),
    "another protocol": (lambda good: b"220 mail.example ESMTP\r\n", "connection"),
}


@pytest.mark.parametrize("body", BODIES)
def test_a_damaged_answer_is_never_a_reply_but_retried_counted_and_recorded(
    shop: Shop, generator: str, body: str
) -> None:
    damage, reason = BODIES[body]
    behave = after_a_good_reply(generator, lambda connection: connection.sendall(damage(good_reply(generator))))
    with endpoint(behave) as server:
        outcomes = ask(shop, generator, server.url, timeout=10.0)
    assert len(outcomes.ok) == 1
    assert [(f.reason, f.retry) for f in outcomes.failed.values()] == [(reason, True)]
    assert server.requests == 1 + 3


ERRORS = {
    b"502 Bad Gateway": [b'{"error": "Bad gateway"}', b'["x"]', b'"x"'],
    b"503 Service Unavailable": [b'{"error": null}', b'{"error": {"message": "m", "details": null}}'],
    b"500 Internal Server Error": [
        b'{"error": {"code": 500, "message": "m", "details": "none"}}',
        b'[{"error": {"code": 500, "message": "m", "status": "INTERNAL"}}]',
    ],
}


@pytest.mark.parametrize(("status", "body"), [(status, body) for status, bodies in ERRORS.items() for body in bodies])
def test_an_error_in_a_shape_of_its_own_is_retried_as_any_other(
    shop: Shop, generator: str, status: bytes, body: bytes
) -> None:
    behave = after_a_good_reply(generator, lambda connection: connection.sendall(answer(body, status=status)))
    outcomes = Outcomes()
    with endpoint(behave) as server:
        try:
            ask(shop, generator, server.url, outcomes, max_retries=1, timeout=10.0, outage_minutes=0.001)
        except UserError as error:  # overload is never a product's fault: it ends the task
            assert status.startswith(b"503") and "Every request failed" in str(error) and not outcomes.failed
        else:
            (failed,) = outcomes.failed.values()
            assert failed.retry and failed.reason in {f"status_{int(status[:3])}", "not_json"} - {"status_503"}
    assert len(outcomes.ok) == 1 and server.requests >= 3


def test_the_server_of_these_tests_can_give_a_good_reply(shop: Shop, generator: str) -> None:
    """Proves that the other tests can fail."""
    with endpoint(lambda connection: connection.sendall(answer(good_reply(generator)))) as server:
        outcomes = ask(shop, generator, server.url, timeout=20.0)
    assert len(outcomes.ok) == len(shop.products) and not outcomes.failed


@pytest.mark.parametrize("how", ["hangs", "drips its head", "drips its body"])
def test_a_server_that_never_ends_its_answer_is_left_after_the_time_out(shop: Shop, generator: str, how: str) -> None:
    whole = answer(good_reply(generator))

    def behave(connection: socket.socket) -> None:
        if how == "hangs":
            server.over.wait()
        elif how == "drips its head":
            drip(connection, whole)
        else:
            head, _, body = whole.partition(b"\r\n\r\n")
            connection.sendall(head + b"\r\n\r\n")
            drip(connection, body)

    with endpoint(after_a_good_reply(generator, behave)) as server:
        outcomes = ask(shop, generator, server.url, max_retries=1)
    assert [(f.reason, f.retry) for f in outcomes.failed.values()] == [("timeout", True)]
    assert server.requests == 1 + 2


def test_a_connection_that_is_reset_is_retried_and_recorded(shop: Shop, generator: str) -> None:
    with endpoint(after_a_good_reply(generator, reset)) as server:
        outcomes = ask(shop, generator, server.url)
    assert [(f.reason, f.retry) for f in outcomes.failed.values()] == [("connection", True)]
    assert all("reset" in f.detail for f in outcomes.failed.values()), outcomes.failed
    assert server.requests == 1 + 3


def test_a_redirect_ends_the_task_with_what_to_do(shop: Shop, generator: str) -> None:
    redirect = answer(b"", b"location: http://localhost:1/elsewhere\r\n", b"307 Temporary Redirect")
    with endpoint(lambda connection: connection.sendall(redirect)) as server:
        with pytest.raises(UserError, match=r"redirects to another address \(307\).*generate\.endpoint"):
            ask(shop, generator, server.url)
        assert server.requests <= len(shop.products)


@pytest.mark.parametrize(
    ("url", "says"),
    [("http://127.0.0.1:1", "127.0.0.1:1: Connection refused"), ("http://no-such-host.invalid", "does not resolve")],
)
def test_a_server_that_cannot_be_reached_ends_the_task_and_gives_no_product_up(
    shop: Shop, generator: str, url: str, says: str
) -> None:
    outcomes = Outcomes()
    settings = settings_for(url, generator=generator, max_retries=2, max_dollars=0.001)  # one or two requests
    with pytest.raises(UserError, match=says) as caught:
        workers.generate_all(
            outcomes.todos(shop.products),
            image_root=shop.root,
            settings=settings,
            ledger=shop.ledger,
            quota_folder=shop.quota,
        )
    assert not outcomes.ok and not outcomes.failed
    assert "HTTPS_PROXY" in str(caught.value) and "the same command continues" in str(caught.value)


def test_an_address_without_a_protocol_is_refused_at_once(shop: Shop, generator: str) -> None:
    with pytest.raises(UserError, match=r"generate\.endpoint: write http://"):
        ask(shop, generator, "localhost:8000")


def test_a_server_that_comes_back_in_time_is_not_given_up(shop: Shop, generator: str, monkeypatch) -> None:
    monkeypatch.setattr(dispatcher, "_FIRST_PAUSE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    started: list[Endpoint] = []

    def start() -> None:
        started.append(Endpoint(lambda connection: connection.sendall(answer(good_reply(generator))), port=port))

    later = threading.Timer(1.0, start)
    later.start()
    try:
        outcomes = ask(shop, generator, f"http://127.0.0.1:{port}", max_retries=20, timeout=20.0)
    finally:
        later.join()
        started[0].close()
    assert len(outcomes.ok) == len(shop.products) and not outcomes.failed


def certificate(folder: Path, days: int, name: str) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate for ``name`` that expires after ``days``, and a server context that uses it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - datetime.timedelta(days=30))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path, private = folder / "certificate.pem", folder / "private.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, private)
    return path, context


@pytest.mark.parametrize(
    ("trusted", "days", "name", "says"),
    [
        (False, 20, "localhost", "self-signed certificate"),
        (True, -1, "localhost", "certificate has expired"),
        (True, 20, "elsewhere.example", "(?i)hostname mismatch"),
    ],
)
def test_a_bad_certificate_is_named_not_retried_and_nothing_is_sent(
    shop: Shop, tmp_path: Path, monkeypatch, generator: str, trusted: bool, days: int, name: str, says: str
) -> None:
    path, context = certificate(tmp_path, days, name)
    if trusted:
        for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            monkeypatch.setenv(variable, str(path))
    outcomes = Outcomes()
    with endpoint(lambda connection: connection.sendall(answer(good_reply(generator))), context) as server:
        settings = settings_for(server.url, generator=generator, max_retries=30, timeout=20.0)
        with pytest.raises(UserError, match=says) as caught:
            workers.generate_all(
                outcomes.todos(shop.products),
                image_root=shop.root,
                settings=settings,
                ledger=shop.ledger,
                quota_folder=shop.quota,
            )
    assert "certificate of the server is not trusted" in str(caught.value)
    assert server.requests == 0 and not outcomes.ok and not outcomes.failed


def test_a_sites_own_certificate_is_accepted_once_its_file_is_named(
    shop: Shop, tmp_path: Path, monkeypatch, generator: str
) -> None:
    path, context = certificate(tmp_path, 20, "localhost")
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(variable, str(path))
    with endpoint(lambda connection: connection.sendall(answer(good_reply(generator))), context) as server:
        outcomes = ask(shop, generator, server.url, timeout=20.0)
    assert len(outcomes.ok) == len(shop.products)


def test_no_failure_of_the_network_shows_the_key(shop: Shop, generator: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A server that echoes the request in every place that error messages come from."""
    said = json.dumps({"error": {"code": 503, "message": f"bad key {KEY}", "status": f"X {KEY}"}}).encode()
    echo = answer(said, b"x-key: " + KEY.encode() + b"\r\n", b"503 " + KEY.encode())
    outcomes = Outcomes()
    with endpoint(lambda connection: connection.sendall(echo)) as server, pytest.raises(UserError) as caught:
        ask(shop, generator, server.url, outcomes, outage_minutes=0.001)
    printed = capfd.readouterr()
    assert KEY not in repr(outcomes) + str(caught.value) + printed.out + printed.err
    assert KEY[-4:] in str(caught.value)


@pytest.mark.parametrize("key", ["line\nend-0123456789", "sp ace-0123456789", "umläut-0123456789"])
def test_a_key_with_a_character_that_cannot_be_sent_is_refused_without_showing_it(
    shop: Shop, generator: str, key: str, monkeypatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", key)
    with pytest.raises(UserError, match="GEMINI_API_KEY contains a character that no key has") as caught:
        ask(shop, generator, "http://127.0.0.1:1")
    printed = capfd.readouterr()
    assert "0123456789" not in str(caught.value) + printed.out + printed.err
