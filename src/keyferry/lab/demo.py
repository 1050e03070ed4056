# SPDX-License-Identifier: Apache-2.0
"""The demonstration: a whole network on free loopback ports, two phones, two application servers, real sockets throughout."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

import httpx

from keyferry.client.http import open_http
from keyferry.client.ue import Isim, UeClient, http_credentials, open_ue
from keyferry.config import Admin as AdminSettings
from keyferry.config import ApplicationServer, Config, Icscf, Network, Pcscf, Scscf, Subscriber
from keyferry.errors import KeyferryError
from keyferry.lab.capture import Capture
from keyferry.lab.ladder import Ladder
from keyferry.lab.raw_keys import raw_keys
from keyferry.lab.scratch import scratch
from keyferry.ports import SipEvent, SipPeer, UeState
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, parse_impi, parse_impu
from keyferry.protocol.ims.marker import parse_marker
from keyferry.protocol.sip.message import Request
from keyferry.roles.ue import UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.esp_sas import EspSas
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.system import System
from keyferry.wiring.tracing import both

Names = Literal["short", "3gpp"]
HOME = {"short": "home1.net", "3gpp": "ims.mnc001.mcc001.3gppnetwork.org"}
UT_HOME = {"short": "home1.net", "3gpp": "ims.mnc001.mcc001.pub.3gppnetwork.org"}
REFUSED: Final = 2_000  # looks, 5 ms apart, whether the P-CSCF has thrown a packet away: it takes milliseconds
FUNCTIONS = {"pcscf": "P-CSCF", "icscf": "I-CSCF", "scscf": "S-CSCF"}
SIMSERVS_TYPE = "application/vnd.etsi.simservs+xml"

SIMSERVS = b"""<?xml version="1.0" encoding="UTF-8"?>
<simservs xmlns="http://uri.etsi.org/ngn/params/xml/simservs/xcap" xmlns:cp="urn:ietf:params:xml:ns:common-policy">
  <communication-diversion active="true">
    <NoReplyTimer>20</NoReplyTimer>
    <cp:ruleset>
      <cp:rule id="call-diversion-no-reply">
        <cp:conditions><no-answer/></cp:conditions>
        <cp:actions><forward-to><target>tel:+15550199</target></forward-to></cp:actions>
      </cp:rule>
    </cp:ruleset>
  </communication-diversion>
</simservs>
"""


class DemoFailed(KeyferryError):
    """Say which promise the demonstration did not keep."""


@dataclass(slots=True)
class DemoResult:
    """What happened, as data; never a key."""

    registration: dict[str, Any] = field(default_factory=dict)
    gm: dict[str, Any] = field(default_factory=dict)
    keys: list[dict[str, Any]] = field(default_factory=list)
    http: list[dict[str, Any]] = field(default_factory=list)
    ladder: Ladder = field(default_factory=Ladder)
    capture: dict[str, str] = field(default_factory=dict)
    at_pcscf: list[str] = field(default_factory=list)  # transports of the requests that came in from UEs

    def observe(self, event: SipEvent) -> None:
        """Take one event of a SIP node."""
        self.ladder.observe(event)
        if event.node == "P-CSCF" and not event.outgoing and isinstance(event.message, Request):
            self.at_pcscf.append(event.peer.transport)

    def data(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        steps = [{**step._asdict(), "at": round(step.at, 6), "size_mark": step.size_mark} for step in self.ladder.steps]
        found = {"registration": self.registration, "gm": self.gm, "ladder": steps, "keys": self.keys, "http": self.http}
        return {"ok": True, **found, **({"capture": self.capture} if self.capture else {})}


def demo_config(names: Names, subscribers: list[Subscriber], gm: Literal["off", "optional", "required"] = "off") -> Config:
    """Return a whole network on free loopback ports."""
    home, ut = HOME[names], UT_HOME[names]
    any_port = "127.0.0.1:0"
    servers = [
        ApplicationServer(as_id=f"{app}.{ut}", sip_uri=f"sip:{app}-as.{home}", listen_sip=any_port, listen_https=any_port, app=app)
        for app in ("xcap", "notes")
    ]
    return Config(
        network=Network(home_domain=home, gm=gm, overload="off"),  # a machine that is busy with other things is no flood
        pcscf=Pcscf(name=f"pcscf1.{home}", listen=any_port, gm_listen=any_port, icscf=f"sip:icscf.{home}"),
        icscf=Icscf(name=f"icscf.{home}", listen=any_port, scscf=f"sip:scscf1.{home}"),
        scscf=Scscf(name=f"scscf1.{home}", listen=any_port, as_probe=0),  # nothing restarts here, and questions are no part of the story
        admin=AdminSettings(listen=any_port),
        application_servers=servers,
        subscribers=subscribers,
    )


@dataclass(slots=True)
class Phone:
    """One UE of the demonstration."""

    name: str
    impu: str
    client: UeClient

    async def state(self) -> UeState:
        """Return its state."""
        state = await self.client.state()
        if state is None:
            raise DemoFailed(f"{self.name} has no state")
        return state


@dataclass(slots=True)
class Demo:
    """Run the steps in order; each checks what it promises."""

    names: Names
    system: System
    alice: Phone
    bob: Phone
    result: DemoResult
    capture: Capture
    clients: dict[tuple[str, AsId], httpx.AsyncClient] = field(default_factory=dict)

    async def run(self) -> None:
        """Register, manage data, fail as an intruder, de-register. Raises DemoFailed."""
        self._phase("Registration of UE A: IMS AKA, and a key for each application server")
        await self._register()
        document = f"/simservs.ngn.etsi.org/users/{self.alice.impu}/simservs.xml"
        xcap, notes = (server.as_id for server in self.system.servers)
        alice = await self.alice.state()
        self._phase("UE A manages its data over HTTPS with the ferried keys")
        # 200, not 201: a user who has stored nothing has the operator's default document, which phones must be able to GET first.
        await self._http(alice, xcap, "PUT", document, SIMSERVS, expect=200, media=SIMSERVS_TYPE)
        stored = await self._http(alice, xcap, "GET", document, expect=200)
        _promise(stored.content == SIMSERVS, "the document comes back as it was put")
        await self._http(alice, notes, "PUT", "/", b"ferried by SIM", expect=201, media="text/plain")
        _promise((await self._http(alice, notes, "GET", "/", expect=200)).content == b"ferried by SIM", "the note comes back")
        self._phase("UE B takes CK, IK where the P-CSCF has CK', IK': its packet fails the ESP check")
        await self._raw_keys()
        self._phase("UE B registers; its key does not open UE A's document")
        await self.bob.client.register()
        theirs = "as it must be: the document is UE A's"
        await self._http(await self.bob.state(), xcap, "GET", document, expect=403, who="UE B", because=theirs)
        self._phase("UE A de-registers; its old key is dead")
        await self.alice.client.deregister()
        await self._http(alice, xcap, "GET", document, expect=401, because="as it must be: UE A de-registered, and its old key is dead")

    def _phase(self, title: str) -> None:
        self.result.ladder.phase = title

    async def _raw_keys(self) -> None:
        """Let UE B answer under CK, IK; nobody answers that, so it is stopped as soon as the P-CSCF has thrown the packet away."""
        came, refused = len(self.result.at_pcscf), self.system.metrics.value("esp_rejected", "icv")
        trying = asyncio.ensure_future(raw_keys(self.bob.client).register())
        for _ in range(REFUSED):
            if self.system.metrics.value("esp_rejected", "icv") > refused or trying.done():
                break
            await asyncio.sleep(0.005)
        trying.cancel()
        await asyncio.gather(trying, return_exceptions=True)
        _promise(self.system.metrics.value("esp_rejected", "icv") > refused, "the ESP check refuses a packet under CK, IK")
        _promise(self.result.at_pcscf[came:] == ["UDP"], "no SIP of a UE with CK, IK reaches a P-CSCF with CK', IK' through ESP")
        self.result.gm["raw_keys"] = "ICV wrong, no SIP reached the P-CSCF"

    async def _register(self) -> None:
        state = await self.alice.client.register()
        _promise(self.result.at_pcscf == ["UDP", "ESP"], "only the first REGISTER is outside ESP")
        pcscf = self.system.pcscf
        marker = parse_marker(state.release_marker)
        _promise(state.k_m is not None, f"AS keys are active ({state.no_keys_because})")
        held = pcscf.fingerprint(state.impi, state.contact) if pcscf else None
        mine = state.gm_keys.fingerprint() if state.gm_keys else None
        _promise(held is not None and held == mine, "UE and P-CSCF hold the same Gm keys")
        self.result.registration = {
            "impi": state.impi,
            "impu": state.impu,
            "status": 200,
            "release": marker.release if marker else 5,
            "masked": state.masked,
            "rspauth": "verified" if state.rspauth else "not verified",
            "nonce_octets": 32 + len(state.release_marker),
            "gm_fingerprint_ue": mine,
            "gm_fingerprint_pcscf": held,
        }
        suite = self.capture.suites[-1]
        self.result.gm = {"protected": True, "alg": suite.alg, "ealg": suite.ealg, "mode": "UDP-enc-tun"}
        for server in self.system.servers:
            self.result.keys.append(await self._ferried(state, server.as_id))

    async def _ferried(self, state: UeState, as_id: AsId) -> dict[str, Any]:
        credentials = http_credentials(state, as_id)
        server = next(one for one in self.system.servers if one.as_id == as_id)
        record = await server.keys.lookup(credentials.username, as_id, self.system.clock.now())
        _promise(record is not None and record.k_as == credentials.k_as, f"{as_id} holds the key that the UE derived")
        return {
            "as": as_id,
            "key_id": credentials.username,
            "fingerprint": credentials.k_as.fingerprint(),
            "pushed": record is not None,
            "pushed_before_200": self._before_200(_as_name(as_id)),
        }

    def _before_200(self, name: str) -> bool:
        steps = self.result.ladder.steps
        answered = next((place for place, step in enumerate(steps) if step.source == name and step.what.startswith("200")), None)
        told = next((place for place, step in enumerate(steps) if step.source == "P-CSCF" and step.what.startswith("200")), None)
        return answered is not None and told is not None and answered < told

    async def _http(
        self, state: UeState, as_id: AsId, method: str, path: str, body: bytes = b"", *, expect: int, media: str = "", who: str = "UE A",
        because: str = "",
    ) -> httpx.Response:  # fmt: skip
        port = next(one.port for one in self.system.listeners if one.proto == "https" and one.name == as_id)
        url = f"https://{as_id}:{port}{path}"
        headers = {"Content-Type": media} if media else {}
        client = self._client(state, as_id, url, who)
        response = await client.request(method, url, content=body or None, headers=headers)
        self.result.http.append(
            {
                "as": as_id,
                "mechanism": "digest",
                "method": method,
                "path": path,
                "status": response.status_code,
                "who": who,
                "because": because,
            }
        )
        _promise(response.status_code == expect, f"{method} by {who} is answered {expect}, not {response.status_code}")
        return response

    def _client(self, state: UeState, as_id: AsId, url: str, who: str) -> httpx.AsyncClient:
        """Return the one client of a UE and an AS: its second request needs no new nonce."""
        client = self.clients.get((who, as_id))
        if client is None:
            hosts, ca = {str(as_id): "127.0.0.1"}, self.system.pki.ca_file
            # A 401 to good credentials would be tried again after 1, 2 and 4 s; here every push is known to have arrived.
            client = open_http(state, url, ca=ca, hosts=hosts, random=self.system.random, waits=())
            client.event_hooks = self._seen(who, as_id)
            self.clients[who, as_id] = client
        return client

    async def aclose(self) -> None:
        """Close the HTTP clients."""
        for client in self.clients.values():
            await client.aclose()

    def _seen(self, who: str, as_id: AsId) -> dict[str, list[Any]]:
        server, ladder, clock = _as_name(as_id), self.result.ladder, self.system.clock

        async def sent(request: httpx.Request) -> None:
            login = "Digest with the ferried key" if "Authorization" in request.headers else "no credentials yet"
            ladder.add(clock.now(), who, server, "TLS", f"{request.method} {_short(request.url.path)}", _octets(request), login)

        async def got(response: httpx.Response) -> None:
            await response.aread()
            asks = "challenge: SHA-256, a nonce" if "WWW-Authenticate" in response.headers else ""
            note = "rspauth: the AS proves itself" if "Authentication-Info" in response.headers else asks
            what = f"{response.status_code} {response.reason_phrase}"
            ladder.add(clock.now(), server, who, "TLS", what, _octets(response), note)

        return {"request": [sent], "response": [got]}


async def run_demo(names: Names = "short", *, capture: Path | None = None) -> DemoResult:
    """Run the whole demonstration in a temporary state directory; write a capture with its Gm keys if asked.

    Raises DemoFailed, ConfigError and what its parts raise.
    """
    result = DemoResult()
    async with _built(names, result, keep=capture is not None) as demo:
        await demo.run()
    if capture is not None:
        result.capture = {"packets": str(capture), "profile": str(demo.capture.write(capture))}
    return result


@asynccontextmanager
async def _built(names: Names, result: DemoResult, *, keep: bool) -> AsyncIterator[Demo]:
    random, clock = SystemRandom(), SystemClock()
    seen = Capture(clock, keep)
    cards = [(Secret(random.octets(16)), Secret(random.octets(16))) for _ in range(2)]
    subscribers = [_subscriber(names, place + 1, k, opc) for place, (k, opc) in enumerate(cards)]
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(scratch("demo"))
        state = stack.enter_context(open_state(Path(folder) / "state", random=random, exclusive=True))
        log = StructLog("none")
        observe = both(result.observe, seen.observe)
        system = System(demo_config(names, subscribers, "required"), state, clock, random, log, Metrics(), observer=observe)
        stack.push_async_callback(system.stop)
        for listener in await system.start():
            result.ladder.names[listener.host, listener.port] = FUNCTIONS.get(listener.role) or _as_name(listener.name)
        hop, gm = (_pcscf(system, proto) for proto in ("udp", "esp"))
        if system.pcscf is not None and system.pcscf.security is not None:
            inside = cast("EspSas", system.pcscf.security.gm)
            result.ladder.names[str(inside.address), inside.ports[1]] = "P-CSCF"
            seen.attach(inside)
        phones = []
        for name, settings, (k, opc) in zip(("UE A", "UE B"), subscribers, cards, strict=True):
            profile = UeProfile(parse_impi(settings.impi), parse_impu(settings.impus[0]), HOME[names])
            isim = Isim("milenage", k, opc)
            opened = open_ue(
                profile, isim, pcscf=hop, store=MemoryUeStore(), clock=clock, random=random, log=log, name=name, observer=observe, gm=gm,
            )  # fmt: skip
            client = await stack.enter_async_context(opened)
            if client.ue.security is not None:
                seen.attach(cast("EspSas", client.ue.security.gm))
            phones.append(Phone(name, profile.impu, client))
        demo = Demo(names, system, phones[0], phones[1], result, seen)
        stack.push_async_callback(demo.aclose)
        yield demo


def _pcscf(system: System, proto: str) -> SipPeer:
    found = next(one for one in system.listeners if one.role == "pcscf" and one.proto == proto)
    return SipPeer("UDP", found.host, found.port)


def _subscriber(names: Names, number: int, k: Secret, opc: Secret) -> Subscriber:
    home = HOME[names]
    imsi = f"00101000000000{number}"
    impi = f"{imsi}@{home}" if names == "3gpp" else f"user{number}_private@{home}"
    impu = f"sip:{imsi}@{home}" if names == "3gpp" else f"sip:user{number}_public1@{home}"
    return Subscriber(impi=impi, impus=[impu, f"tel:+1555010000{number}"], k=k, opc=opc)


def _as_name(as_id: str) -> str:
    return f"AS {as_id.partition('.')[0]}"


def _octets(message: httpx.Request | httpx.Response) -> int:
    """Return the octets of the header fields and the body, as they go into TLS."""
    return sum(len(name) + len(value) + 4 for name, value in message.headers.raw) + len(message.content)


def _short(path: str) -> str:
    return path if len(path) <= 24 else "…" + path.rsplit("/", 1)[-1]


def _promise(kept: bool, promise: str) -> None:
    if not kept:
        raise DemoFailed(f"the demonstration promises that {promise}, and it is not so")
