"""Keys go to the endpoint, in a header, and nowhere else."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import ValidationError

from data_prep.generate.clients.base import Request, client_class, known_generators
from data_prep.generate.settings import ProjectSettings
from data_prep.stand_in import StandIn, StandInOptions
from tests.data_prep.generate.conftest import KEY, Shop, settings_for

REQUEST = Request("five questions", b"\xff\xd8\xff", "image/jpeg", 1024)


@pytest.fixture
def redirect() -> Iterator[tuple[str, list[str]]]:
    """A server that redirects to another, and the headers that the other gets to see."""
    seen: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(str(self.headers))
            self.send_response(500)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    other = ThreadingHTTPServer(("127.0.0.1", 0), Other)

    class Redirecting(Other):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(307)
            self.send_header("location", f"http://localhost:{other.server_port}/x")
            self.send_header("content-length", "0")
            self.end_headers()

    first = ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    for server in (other, first):
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{first.server_port}", seen
    for server in (other, first):
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("generator", known_generators())
def test_a_redirect_does_not_carry_the_key_to_another_server(generator: str, redirect: tuple[str, list[str]]) -> None:
    url, seen = redirect
    with pytest.raises(Exception, match=r"307|redirect"):
        client_class(generator)(settings_for(url, generator=generator), KEY, url).generate(REQUEST)
    assert not any(KEY in headers for headers in seen)


@pytest.mark.parametrize("generator", known_generators())
@pytest.mark.parametrize("fault", ["status_500", "status_429", "html", "break_off"])
def test_no_traceback_or_repr_shows_the_key(shop: Shop, generator: str, fault: str) -> None:
    image = (shop.root / shop.products[0].image_path).read_bytes()
    with StandIn(shop.answers, StandInOptions(faults={fault: 1.0})) as server:
        client = client_class(generator)(settings_for(server.url, generator=generator), KEY, server.url)
        try:
            client.generate(Request("five questions", image, "image/jpeg", 1024))
        except Exception as error:
            shown = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__cause__)
        else:
            pytest.fail("the fault did not show")
    assert KEY not in shown + repr(client)


def test_the_stand_ins_log_has_only_the_end_of_a_key(shop: Shop) -> None:
    log = shop.root.parent / "log.jsonl"
    image = (shop.root / shop.products[0].image_path).read_bytes()
    with StandIn(shop.answers, log=log) as server:
        client_class("openai_compatible")(settings_for(server.url), KEY, server.url).generate(
            Request("five questions", image, "image/jpeg", 1024)
        )
    assert KEY not in log.read_text() and KEY[-4:] in log.read_text()


def test_a_key_in_the_configuration_is_refused_without_showing_it() -> None:
    with pytest.raises(ValidationError, match="never the keys themselves") as caught:
        ProjectSettings(keys=[KEY])
    assert KEY not in str(caught.value)
