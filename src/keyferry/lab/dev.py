# SPDX-License-Identifier: Apache-2.0
"""A network for developers: one process with every function on free loopback ports, SIMs that stay registered, a proxy for each."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from keyferry.asgi.auth import SimLogin
from keyferry.client.library import Ue
from keyferry.client.session import ue_session
from keyferry.config import Admin, ApplicationServer, Config, Icscf, Network, Pcscf, Scscf, Subscriber, UeConfig, load_ue_config
from keyferry.config import Ue as UeSettings
from keyferry.errors import ConfigError
from keyferry.ports import Log, RandomSource
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_as_id
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.appserver import load_application
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.system import System

HOME: Final = "home1.net"
AS_ID: Final = "app.test"
"""RFC 6761 §6.2: nobody's name. Not a name in localhost: browsers go to those past any proxy."""
ANY: Final = "127.0.0.1:0"
_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,30}")


@dataclass(frozen=True, slots=True)
class DevOptions:
    """What a developer may want otherwise."""

    app: str = "notes"  # `notes`, `xcap` or `module:attribute`
    as_id: str = ""  # "": that of the application's own SimLogin, else AS_ID
    sims: Sequence[str] = ("alice", "bob")
    port: int = 0  # of the application; 0: a free one


@dataclass(slots=True)
class DevSim:
    """One SIM of the network: where to be it."""

    name: str
    impu: str
    proxy: str = ""
    config: str = ""
    state: str = ""

    @property
    def pac(self) -> str:
        """Return what a browser is configured with."""
        return f"{self.proxy}/proxy.pac"


@dataclass(slots=True)
class DevNetwork:
    """What runs."""

    url: str
    ca: str  # of the proxies
    app_ca: str  # of the application's own listener
    state: str
    sims: list[DevSim] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        sims = {
            each.name: {"impu": each.impu, "proxy": each.proxy, "pac": each.pac, "config": each.config, "state": each.state}
            for each in self.sims
        }
        return {"ready": True, "app": self.url, "ca": self.ca, "app_ca": self.app_ca, "state": self.state, "sims": sims}


@asynccontextmanager
async def dev_network(options: DevOptions, folder: Path, log: Log) -> AsyncIterator[DevNetwork]:
    """Run it; `folder` keeps cards, keys and data from one run to the next.

    Raises ConfigError (names, the application), StateError, TransportError, RegistrationFailed.
    """
    options = replace(options, as_id=options.as_id or _as_id_of(options.app))
    _check(options)
    random, clock = SystemRandom(), SystemClock()
    sims = _cards(options.sims, folder, random)
    async with AsyncExitStack() as stack:
        state = stack.enter_context(open_state(folder / "network", random=random, exclusive=True))
        config = dev_config(options, [sim.subscriber() for sim in sims])
        system = System(config, state, clock, random, StructLog("none"), Metrics())
        stack.push_async_callback(system.stop)
        await system.start()
        port = next(one.port for one in system.listeners if one.role == "as" and one.proto == "https")
        pcscf = next(one for one in system.listeners if one.role == "pcscf" and one.proto == "udp")
        url = f"https://{options.as_id}:{port}/"
        network = DevNetwork(url, "", str(system.pki.ca_file), str(folder))
        for sim in sims:
            settings = sim.ue(f"{pcscf.host}:{pcscf.port}", url, str(system.pki.ca_file), options.as_id)
            session = await stack.enter_async_context(ue_session(settings, folder / sim.name, log))
            await stack.enter_async_context(Ue(session).registered())
            proxy, ca = session.proxy(authority=folder / "network")
            stack.push_async_callback(proxy.aclose)
            host, proxy_port = await proxy.listen("127.0.0.1", 0)
            network.ca = str(ca)
            found = DevSim(sim.name, sim.impu, f"http://{host}:{proxy_port}", str(sim.file), str(folder / sim.name))
            network.sims.append(found)
        yield network


def dev_config(options: DevOptions, subscribers: list[Subscriber]) -> Config:
    """Return a whole network on free loopback ports, with one application server."""
    server = ApplicationServer(
        as_id=options.as_id, sip_uri=f"sip:app-as.{HOME}", listen_sip=ANY, listen_https=f"127.0.0.1:{options.port}", app=options.app
    )
    return Config(
        network=Network(home_domain=HOME, overload="off"),  # what is too busy here is the developer's machine, and its phones are two
        pcscf=Pcscf(name=f"pcscf1.{HOME}", listen=ANY, icscf=f"sip:icscf.{HOME}"),
        icscf=Icscf(name=f"icscf.{HOME}", listen=ANY, scscf=f"sip:scscf1.{HOME}"),
        scscf=Scscf(name=f"scscf1.{HOME}", listen=ANY),
        admin=Admin(listen=ANY),
        application_servers=[server],
        subscribers=subscribers,
    )


@dataclass(frozen=True, slots=True)
class _Card:
    """A SIM's name and keys, and the file of its UE."""

    name: str
    k: Secret
    opc: Secret
    file: Path

    @classmethod
    def kept(cls, name: str, folder: Path, random: RandomSource) -> _Card:
        """Return the card of the last run, else a new one."""
        file = folder / f"{name}.toml"
        if file.exists():
            ue = load_ue_config(file).ue
            if ue.opc is not None:
                return cls(name, ue.k, ue.opc, file)
        return cls(name, Secret(random.octets(16)), Secret(random.octets(16)), file)

    @property
    def impi(self) -> str:
        return f"{self.name}_private@{HOME}"

    @property
    def impu(self) -> str:
        return f"sip:{self.name}@{HOME}"

    def subscriber(self) -> Subscriber:
        return Subscriber(impi=self.impi, impus=[self.impu], k=self.k, opc=self.opc)

    def ue(self, pcscf: str, root: str, ca: str, as_id: str) -> UeConfig:
        """Return the UE's settings, and keep them in a file for `keyferry ue`."""
        ue = UeSettings(
            impi=self.impi, impu=self.impu, k=self.k, opc=self.opc, home_domain=HOME, pcscf=pcscf, xcap_root=root, ca=ca, expires=3600
        )
        lines = {"impi": ue.impi, "impu": ue.impu, "k": self.k.reveal().hex(), "opc": self.opc.reveal().hex(), "home_domain": HOME,
                 "pcscf": pcscf, "xcap_root": root, "ca": ca}  # fmt: skip
        text = "[ue]\n" + "".join(f'{name} = "{_quoted(value)}"\n' for name, value in lines.items()) + "expires = 3600\n"
        _write_private(self.file, f'# A SIM of `keyferry dev`; its keys are real.\n{text}\n[hosts]\n"{as_id}" = "127.0.0.1"\n')
        return UeConfig(ue=ue, hosts={as_id: "127.0.0.1"})


def _cards(names: Sequence[str], folder: Path, random: RandomSource) -> list[_Card]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(str(folder), f"cannot be made: {problem.strerror}", "Choose another directory") from None
    return [_Card.kept(name, folder, random) for name in names]


def _as_id_of(app: str) -> str:
    """Return the name that an application has given itself. Raises ConfigError."""
    found = load_application(app) if ":" in app else None
    return found.as_id if isinstance(found, SimLogin) else AS_ID


def _check(options: DevOptions) -> None:
    if not options.sims or len(set(options.sims)) != len(options.sims):
        raise ConfigError("--sim", "names the same SIM twice")
    for name in options.sims:
        if not _NAME.fullmatch(name) or name == "network":
            raise ConfigError("--sim", f"{name!r} is no name for a SIM", "Write lower-case letters and digits, as in alice")
    if parse_as_id(options.as_id) != options.as_id:
        raise ConfigError("--as-id", "is not in canonical form", f"Write {parse_as_id(options.as_id)}")


def _quoted(text: str) -> str:
    """Return what TOML takes between quotation marks."""
    if not text.isprintable():
        raise ConfigError("--state", "has a name that cannot be written down", "Choose another directory")
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _write_private(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(text)
