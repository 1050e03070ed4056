# SPDX-License-Identifier: Apache-2.0
"""RFC 7616, DESIGN §7: our client, and an ordinary one, against the door; over TLS too."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from asgi.doorkit import AS_ID, Certificate, Client, Door, Echo, FakeRandom, Pki, make_door, record, serving
from keyferry.asgi.exchange import Receive, Scope, Send
from keyferry.client.http_auth import WAITS, SimDigest
from keyferry.errors import DigestRejected, LocalProtocolError
from keyferry.ports import KeyRecord
from keyferry.protocol import digest
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims import keys as ims_keys

URL = f"https://{AS_ID}/notes"
ALICE = record()
LOCAL = AsId("localhost")
LOCAL_ALICE = record(as_id=LOCAL)


class Waits:
    """An asyncio.sleep that takes no time."""

    def __init__(self, then: Callable[[int], None] = lambda _: None) -> None:
        self.taken: list[float] = []
        self._then = then

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        self._then(len(self.taken))


def sim(held: KeyRecord = ALICE, sleep: Waits | None = None, **settings: Any) -> SimDigest:
    k_ua, random = ims_keys.ua_key(held.k_as), FakeRandom("client")
    return SimDigest(key_id=held.key_id, as_id=held.as_id, k_ua=k_ua, random=random, sleep=sleep or Waits(), **settings)


def client_of(app: Any, auth: httpx.Auth | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), auth=auth or sim())


class Spy:
    """Stand before the door; note what passes, and change the answers."""

    def __init__(self, door: Door, change: Callable[[int, dict[str, Any]], None] = lambda *_: None) -> None:
        self.authorizations: list[str | None] = []
        self._door = door
        self._change = change

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.authorizations.append(dict(scope["headers"]).get(b"authorization", b"").decode() or None)

        async def changed(message: Any) -> None:
            message = dict(message)
            if message["type"] == "http.response.start":
                self._change(len(self.authorizations), message)
            await send(message)

        await self._door.door(scope, receive, changed)

    def counts(self) -> list[str | None]:
        return [digest.parse_credentials(text).nc if text else None for text in self.authorizations]


@contextlib.contextmanager
def in_thread(app: Any, certificate: Certificate) -> Iterator[int]:
    """Serve beside a client that blocks."""
    ready: queue.SimpleQueue[int] = queue.SimpleQueue()
    ended = threading.Event()

    async def run() -> None:
        async with serving(app, certificate) as port:
            ready.put(port)
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        yield ready.get(timeout=20)
    finally:
        ended.set()
        thread.join()


def drop(name: bytes, *, numbers: tuple[int, ...] = (1, 2, 3, 4, 5)) -> Callable[[int, dict[str, Any]], None]:
    def change(number: int, message: dict[str, Any]) -> None:
        if number in numbers:
            message["headers"] = [field for field in message["headers"] if field[0] != name]

    return change


async def test_one_challenge_then_every_request_is_answered_at_once() -> None:
    """RFC 7616 §3.4.5."""
    spy = Spy(make_door(ALICE))
    async with client_of(spy) as client:
        for _ in range(3):
            response = await client.get(URL)
            assert (response.status_code, response.text) == (200, "sip:alice@home1.net")
    assert spy.counts() == [None, "00000001", "00000002", "00000003"]


async def test_a_body_is_sent_again_after_the_challenge() -> None:
    """A stream cannot be sent twice: it is kept."""

    async def stream() -> AsyncIterator[bytes]:
        yield b"no"
        yield b"te"

    door = make_door(ALICE)
    async with client_of(door.door) as client:
        assert (await client.put(URL, content=stream())).status_code == 200
    assert door.app.bodies == [b"note"]


@pytest.mark.parametrize("status", [200, 201, 302, 404])
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_server_that_never_asks_who_we_are_is_not_believed_and_sees_no_body(method: str, status: int) -> None:
    """It may hold a certificate that we trust, but it did not prove the key."""
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        return httpx.Response(status, text="forged")

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), auth=sim()) as client:
        with pytest.raises(DigestRejected, match="did not prove the key"):
            await client.request(method, URL, content=b"private settings")
    assert seen == [b""]


@pytest.mark.parametrize("status", [403, 421, 503])
async def test_an_error_before_any_challenge_is_passed_on(status: int) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status))
    async with httpx.AsyncClient(transport=transport, auth=sim()) as client:
        assert (await client.put(URL, content=b"private settings")).status_code == status


async def test_the_key_goes_to_its_own_host_over_https_alone() -> None:
    """DESIGN §3."""
    spy = Spy(make_door(ALICE))
    async with client_of(spy) as client:
        for url in (f"http://{AS_ID}/", "https://other.home1.net/", "https://127.0.0.1/", f"https://{AS_ID}.evil.net/"):
            with pytest.raises(LocalProtocolError):
                await client.get(url)
        assert (await client.get("https://XCAP.home1.net.:8443/notes")).status_code == 200
    assert len(spy.authorizations) == 2


def test_a_synchronous_client_logs_in_too(pki: Pki) -> None:
    """httpx.Client: the same flow, by a challenge."""
    taken: list[float] = []
    certificate = pki.issue(LOCAL, "sync")
    spy = Spy(make_door(LOCAL_ALICE, as_id=LOCAL, certificate_hashes=(certificate.sha256,)))
    auth = SimDigest(
        key_id=LOCAL_ALICE.key_id, as_id=LOCAL, k_ua=ims_keys.ua_key(LOCAL_ALICE.k_as), random=FakeRandom("client"), pause=taken.append
    )
    with in_thread(spy, certificate) as port, httpx.Client(verify=pki.trust(), auth=auth) as client:
        for _ in range(2):
            assert client.put(f"https://localhost:{port}/notes", content=b"x").text == "sip:alice@home1.net"
    assert spy.counts() == [None, "00000001", "00000002"]
    assert taken == []


def test_a_synchronous_client_waits_for_a_late_key_and_stops_before_another_server() -> None:
    """The waits are the caller's; a wrong proof is refused."""
    taken: list[float] = []
    texts = iter(["", "Retry-After", "Retry-After", "forged"])

    def answer(request: httpx.Request) -> httpx.Response:
        kind = next(texts)
        if kind == "forged":
            return httpx.Response(200, headers={"Authentication-Info": 'rspauth="00", qop=auth, cnonce="x", nc=00000001'})
        text = f'Digest realm="IMS-AS-key@{AS_ID}", nonce="y", qop="auth", algorithm=SHA-256'
        return httpx.Response(401, headers={"WWW-Authenticate": text, **({kind: "1"} if kind else {})})

    auth = SimDigest(key_id=ALICE.key_id, as_id=AS_ID, k_ua=ims_keys.ua_key(ALICE.k_as), random=FakeRandom("client"), pause=taken.append)
    with httpx.Client(transport=httpx.MockTransport(answer), auth=auth) as client, pytest.raises(DigestRejected):
        client.get(URL)
    assert taken == [1.0, 2.0]


async def test_other_challenges_are_left_to_others() -> None:
    """Never silently to password Digest; never MD5."""
    asked: list[httpx.Request] = []

    def answering(*challenges: str) -> httpx.AsyncClient:
        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return httpx.Response(401, headers=[("WWW-Authenticate", text) for text in challenges])

        return httpx.AsyncClient(transport=httpx.MockTransport(answer), auth=sim())

    realm = "IMS-AS-key@xcap.home1.net"
    for others in ([], ["Basic realm=x"], ['Digest realm="x", nonce="y", qop="auth", algorithm=SHA-256'], ["Digest realm"]):
        async with answering(*others) as client:
            assert (await client.get(URL)).status_code == 401
    for unusable in (
        f'Digest realm="{realm}", nonce="y", qop="auth"',
        f'Digest realm="{realm}", nonce="y", qop="auth", algorithm=MD5',
        f'Digest realm="{realm}", nonce="y", algorithm=SHA-256',
        f'Digest realm="{realm}", nonce="y", algorithm=SHA-256, qop="auth-conf"',
    ):
        async with answering(unusable) as client:
            with pytest.raises(DigestRejected):
                await client.get(URL)
    assert not any("authorization" in request.headers for request in asked)


async def test_sha_256_is_found_beside_md5() -> None:
    """RFC 7616 §3.7."""
    door = make_door(ALICE, algorithms=("MD5", "SHA-256"))
    async with client_of(door.door) as client:
        assert (await client.get(URL)).status_code == 200


# ---- the server proves the key


async def test_an_answer_without_proof_is_rejected() -> None:
    """RFC 7616 §3.5: a relay that cannot reach the AS, or an application that lost the door."""
    async with client_of(Spy(make_door(ALICE), drop(b"authentication-info"))) as client:
        with pytest.raises(DigestRejected, match="did not prove"):
            await client.get(URL)


@pytest.mark.parametrize(
    "text", ['rspauth="00", qop=auth, cnonce="x", nc=00000001', "", "rspauth", 'nextnonce="x"', 'rspauth="x", rspauth="x"']
)
async def test_a_wrong_proof_is_rejected(text: str) -> None:
    """RFC 7616 §3.5."""

    def change(_: int, message: dict[str, Any]) -> None:
        message["headers"] = [(n, text.encode() if n == b"authentication-info" else v) for n, v in message["headers"]]

    async with client_of(Spy(make_door(ALICE), change)) as client:
        with pytest.raises(DigestRejected):
            await client.get(URL)


async def test_what_the_door_says_before_login_needs_no_proof_but_nothing_else() -> None:
    """A forged 404 would look like a document that is gone."""
    for status, proven in ((403, False), (421, False), (503, False), (404, True), (409, True), (304, True), (200, True)):

        def change(number: int, message: dict[str, Any], status: int = status) -> None:
            if number == 2:
                message["status"] = status
                drop(b"authentication-info")(number, message)

        async with client_of(Spy(make_door(ALICE), change)) as client:
            if proven:
                with pytest.raises(DigestRejected):
                    await client.get(URL)
            else:
                assert (await client.get(URL)).status_code == status


# ---- nonces and waiting


async def test_the_next_nonce_is_followed() -> None:
    """RFC 7616 §3.5."""
    door = make_door(ALICE, nonce_lifetime=100.0)
    spy = Spy(door)
    async with client_of(spy) as client:
        await client.get(URL)
        door.clock.time += 60
        await client.get(URL)
        door.clock.time += 60
        await client.get(URL)
    assert spy.counts() == [None, "00000001", "00000002", "00000001"]


async def test_a_stale_nonce_costs_one_more_request() -> None:
    """RFC 7616 §3.3."""
    door = make_door(ALICE, nonce_lifetime=100.0)
    spy = Spy(door)
    async with client_of(spy) as client:
        await client.get(URL)
        door.clock.time += 101
        assert (await client.get(URL)).status_code == 200
    assert spy.counts() == [None, "00000001", "00000002", "00000001"]


async def test_a_server_that_finds_every_nonce_stale_is_given_up() -> None:
    """No endless loop."""

    def answer(_: httpx.Request) -> httpx.Response:
        text = 'Digest realm="IMS-AS-key@xcap.home1.net", nonce="y", qop="auth", algorithm=SHA-256, stale=true'
        return httpx.Response(401, headers={"WWW-Authenticate": text, "Retry-After": "1"})

    waits = Waits()
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), auth=sim(sleep=waits)) as client:
        assert (await client.get(URL)).status_code == 401
    assert waits.taken == []


async def test_a_key_that_arrives_late_is_waited_for() -> None:
    """DESIGN §7: the push may still be on its way."""
    door = make_door()

    def push(number: int) -> None:
        if number == 2:
            door.keys.records[ALICE.key_id] = ALICE

    waits = Waits(push)
    async with client_of(door.door, sim(sleep=waits)) as client:
        assert (await client.get(URL)).status_code == 200
    assert waits.taken == [1.0, 2.0]


async def test_a_key_that_never_arrives_is_given_up() -> None:
    """Bounded."""
    waits = Waits()
    async with client_of(make_door().door, sim(sleep=waits)) as client:
        assert (await client.get(URL)).status_code == 401
    assert tuple(waits.taken) == WAITS


async def test_a_server_that_does_not_ask_for_patience_gets_none() -> None:
    """RFC 9110 §10.2.3."""
    waits = Waits()
    async with client_of(Spy(make_door(), drop(b"retry-after")), sim(sleep=waits)) as client:
        assert (await client.get(URL)).status_code == 401
    assert waits.taken == []


# ---- over TLS


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


async def test_the_certificate_is_bound_and_an_alias_of_the_path_is_not_lost(pki: Pki) -> None:
    """DESIGN §7: cb1, over uvicorn; raw_path is what was signed."""
    certificate = pki.issue(LOCAL, "server")
    spy = Spy(make_door(LOCAL_ALICE, as_id=LOCAL, certificate_hashes=(certificate.sha256,)))
    async with serving(spy, certificate) as port, httpx.AsyncClient(verify=pki.trust(), auth=sim(LOCAL_ALICE)) as client:
        for path in ("/users/sip%3Aalice%40home1.net/x", "/users/sip:alice@home1.net/x?a=%5B1%5D&b", "/~~/a%5b@id=%22x%22%5d"):
            assert (await client.get(f"https://localhost:{port}{path}")).status_code == 200
        assert (await client.put(f"https://localhost:{port}/notes", content=b"x" * 100_000)).status_code == 200
    cnonce = digest.parse_credentials(spy.authorizations[1] or "").cnonce or ""
    assert cnonce.startswith("cb1.")
    assert cnonce.endswith("." + base64.urlsafe_b64encode(certificate.sha256).decode().rstrip("="))


async def test_a_relay_with_a_valid_certificate_of_its_own_gets_nowhere(pki: Pki) -> None:
    """DESIGN §7: somebody who holds another certificate for the name."""
    genuine, stolen = pki.issue(LOCAL, "genuine"), pki.issue(LOCAL, "stolen")
    door = make_door(LOCAL_ALICE, as_id=LOCAL, certificate_hashes=(genuine.sha256,))
    async with serving(door.door, genuine) as inner, httpx.AsyncClient(verify=pki.trust()) as onward:

        async def relay(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
            response = await onward.get(f"https://localhost:{inner}{scope['raw_path'].decode()}", headers=headers)
            await send({"type": "http.response.start", "status": response.status_code, "headers": response.headers.raw})
            await send({"type": "http.response.body", "body": response.content})

        async with serving(relay, stolen) as outer, httpx.AsyncClient(verify=pki.trust(), auth=sim(LOCAL_ALICE)) as client:
            assert (await client.get(f"https://localhost:{outer}/notes")).status_code == 403
        assert door.app.scopes == []
        assert door.counter.seen == ["door challenge", "door certificate"]


async def test_a_changed_certificate_stops_the_request_before_it_is_sent(pki: Pki) -> None:
    """A relay that lets the first connection pass and takes the second for itself; the traces of others go on."""
    first, second = pki.issue(LOCAL, "first"), pki.issue(LOCAL, "second")
    door = make_door(LOCAL_ALICE, as_id=LOCAL, certificate_hashes=(first.sha256, second.sha256))
    before, after = Spy(door), Spy(door)
    events: list[str] = []

    async def trace(event: str, _: Any) -> None:
        events.append(event)

    async with httpx.AsyncClient(verify=pki.trust(), auth=sim(LOCAL_ALICE)) as client:
        async with serving(before, first) as port:
            url = f"https://localhost:{port}/notes"
            assert (await client.get(url, extensions={"trace": trace}, headers={"Connection": "close"})).status_code == 200
        async with serving(after, second, port):
            with pytest.raises(DigestRejected, match="nothing was sent"):
                await client.get(url)
            assert after.authorizations == []
            assert (await client.get(url, headers={"Connection": "close"})).status_code == 200
    assert "http11.send_request_headers.complete" in events


async def test_an_answer_over_a_connection_to_another_server_is_rejected() -> None:
    """A pooled connection that somebody else opened."""

    class Stream:
        """A network stream to a server with this certificate."""

        def __init__(self, certificate: bytes | None) -> None:
            self._certificate = certificate

        def get_extra_info(self, _: str) -> Any:
            return None if self._certificate is None else self

        def getpeercert(self, binary_form: bool) -> bytes | None:
            assert binary_form
            return self._certificate

    certificates = iter([b"one", b"two", None])
    certificate_hash = hashlib.sha256(b"one").digest()
    inner = httpx.ASGITransport(make_door(ALICE, certificate_hashes=(certificate_hash,)).door)

    class Transport(httpx.AsyncBaseTransport):
        """Put a stream into each response."""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await inner.handle_async_request(request)
            response.extensions["network_stream"] = Stream(next(certificates))
            return response

    async with httpx.AsyncClient(transport=Transport(), auth=sim()) as client:
        with pytest.raises(DigestRejected, match="another server"):
            await client.get(URL)
        with pytest.raises(DigestRejected, match="no certificate"):
            await client.get(URL)


async def test_an_ordinary_client_logs_in_with_key_id_and_password(pki: Pki) -> None:
    """DESIGN §7: httpx.DigestAuth, keep-alive included, over uvicorn."""
    certificate = pki.issue(LOCAL, "ordinary")
    app = Echo()
    door = make_door(LOCAL_ALICE, app=app, as_id=LOCAL)
    auth = httpx.DigestAuth(LOCAL_ALICE.key_id, Client(LOCAL_ALICE).password.reveal())
    async with serving(door.door, certificate) as port, httpx.AsyncClient(verify=pki.trust(), auth=auth) as client:
        for _ in range(3):
            assert (await client.get(f"https://localhost:{port}/notes?a=b")).text == "sip:alice@home1.net"
        assert (await client.put(f"https://localhost:{port}/notes", content=b"milk")).status_code == 200
        wrong = httpx.DigestAuth(LOCAL_ALICE.key_id, Secret(b"wrong").reveal())
        assert (await client.get(f"https://localhost:{port}/notes", auth=wrong)).status_code == 401
    assert app.bodies[-1] == b"milk"


async def test_absolute_form_and_two_slashes_are_not_taken_for_another_target(pki: Pki, tmp_path: Path) -> None:
    """RFC 9112 §3.2.2: what httptools makes of a request line must not open another document."""
    certificate = pki.issue(LOCAL, "target")
    door = make_door(LOCAL_ALICE, as_id=LOCAL)
    who = Client(LOCAL_ALICE)
    async with serving(door.door, certificate) as port, httpx.AsyncClient(verify=pki.trust()) as client:
        base = f"https://localhost:{port}/notes"
        challenge = digest.parse_challenge((await client.get(base)).headers["www-authenticate"])
        for count, (target, uri, status) in enumerate(
            [
                (f"https://localhost:{port}/notes", f"https://localhost:{port}/notes", 200),
                (f"https://localhost:{port}/notes", "https://other.home1.net/notes", 400),
                ("https://other.home1.net/notes", "/notes", 200),  # the same resource: Host and TLS name decide, not the text
                ("//evil/notes", "/notes", 400),
                ("/notes#x", "/notes#x", 400),
                ("/a/../notes", "/notes", 400),
            ],
            start=1,
        ):
            request = client.build_request("GET", base, headers=dict([who.answer(challenge, count, uri=uri)]))
            request.extensions = {**request.extensions, "target": target.encode()}
            assert (await client.send(request)).status_code == status, target
