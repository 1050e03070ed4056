# SPDX-License-Identifier: Apache-2.0
"""What `serve` would refuse, found before it starts anything: `keyferry check` and `keyferry serve` both begin with `read_served`."""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keyferry.asgi.auth import SimLogin
from keyferry.asgi.static_keys import StaticKeys, load_static_keys
from keyferry.config import AGENT, ApplicationServer, Config, Scscf, load_config, split_address
from keyferry.config.cx import cx_peers
from keyferry.config.explaining import did_you_mean
from keyferry.config.lines import located
from keyferry.config.reading import checked
from keyferry.errors import ConfigError, StateError, TransportError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_as_id
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.stores.state_dir import check_file_name, check_isc_names, check_state
from keyferry.transports.clock import SystemClock
from keyferry.transports.pki import Pki
from keyferry.transports.resolver import TableResolver
from keyferry.transports.sip_tcp import WILDCARDS
from keyferry.transports.unix_socket import check_folder, user_id
from keyferry.wiring.appserver import application_of, check_as_id, guarded
from keyferry.wiring.ipsec_files import pairs_of
from keyferry.wiring.protection import kek_file
from keyferry.wiring.rspauth import group_of
from keyferry.wiring.services import Role, roles_of


class Wanted(NamedTuple):
    """A socket that a process would open."""

    where: str  # the key
    proto: str  # tcp or udp
    host: str
    port: int
    sip: bool


class Plan(NamedTuple):
    """A configuration, and what of it one process plays."""

    config: Config
    roles: Collection[Role]
    scscfs: Sequence[tuple[str, Scscf]]  # the table of each, and what is in it
    servers: Sequence[tuple[str, ApplicationServer]]  # that run here, not at a key agent

    def plays(self, *roles: Role) -> bool:
        """Tell whether the process plays one of these."""
        return any(role in self.roles for role in roles)


def read_served(
    path: Path, state: Path, roles: Collection[Role] | None = None, scscfs: Collection[str] | None = None, *, here: bool = True
) -> Config:  # fmt: skip
    """Read the file of `keyferry serve` and refuse what would stop it, or leave it without use; nothing is made, and no port taken.

    An application is imported, as `serve` does. A file that is not for use `here` may have addresses of another machine.
    Raises ConfigError, StateError.
    """
    config = load_config(path)
    plan = plan_of(config, roles, scscfs)
    with located(path):
        try:
            check_plan(plan, state, here=here)
        except StateError:
            raise
        except ConfigError as problem:
            raise ConfigError(f"{path}: {problem.where}", problem.problem, problem.remedy) from problem.__cause__
    return config


def plan_of(config: Config, roles: Collection[Role] | None = None, scscfs: Collection[str] | None = None) -> Plan:
    """Return what one process plays of a configuration: without `roles` and `scscfs` all."""
    played = roles_of(config) if roles is None else roles
    known = [one.name for one in config.scscfs]
    for name in scscfs or ():
        if name not in known:
            raise ConfigError("--scscf", f"{name!r} is not one of {', '.join(known)}", did_you_mean(name, known, "Name one of these"))
    every = [(f"further_scscfs[{place - 1}]" if place else "scscf", one) for place, one in enumerate(config.scscfs)]
    own = [(where, one) for where, one in every if "scscf" in played and (scscfs is None or one.name in scscfs)]
    servers = enumerate(config.application_servers)
    here = [(f"application_servers[{place}]", one) for place, one in servers if "as" in played and one.app != AGENT]
    return Plan(config, played, own, here)


def check_plan(plan: Plan, state: Path, *, here: bool = True) -> None:
    """Refuse what would stop the process. Raises ConfigError with the key, StateError."""
    _check_names(plan, state)
    _check_listeners(list(listeners_of(plan)), here=here)
    _check_routes(plan)
    _check_diameter(plan)
    if here:
        _check_rspauth(plan)
    for where, server in plan.servers:
        _check_door(where, server)
    if plan.plays("scscf", "as") and any(str(server.protection) == "ipsec" for server in plan.config.application_servers):
        pairs_of(plan.config)
    check_state(state, kek_file())
    _check_certificates(plan, Pki(state, SystemClock()))


def warnings_of(plan: Plan, *, here: bool = True) -> list[str]:
    """Return what may be wrong, or is at this moment: `serve` would start, or somebody else has to make room first."""
    busy = _busy(list(listeners_of(plan))) if here else []
    return [*_unknown_peers(plan.config), *_strange_domains(plan.config), *_unknown_servers(plan), *busy]


# ---- names


def _check_names(plan: Plan, state: Path) -> None:
    for where, scscf in plan.scscfs:
        _for_files(f"{where}.name", state, f"scscf-{scscf.name}.db")
    for where, server in plan.servers:
        _for_files(f"{where}.as_id", state, f"as-{parse_as_id(server.as_id)}.db")
    every = {f"application_servers[{place}]": server for place, server in enumerate(plan.config.application_servers)}
    pairs = [(where, scscf.name, server) for where, server in every.items() for _, scscf in plan.scscfs]
    pairs += [(where, name, server) for where, server in plan.servers for name in server.pushers]
    for where, name, server in pairs:
        try:
            check_isc_names(state, name, parse_as_id(server.as_id))
        except StateError as problem:
            raise ConfigError(f"{where}.as_id", f"with the S-CSCF {name}: {problem.problem}", problem.remedy) from None


def _for_files(where: str, state: Path, name: str) -> None:
    try:
        check_file_name(state, name)
    except StateError as problem:
        raise ConfigError(where, problem.problem, problem.remedy) from None


# ---- listeners


def listeners_of(plan: Plan) -> Iterator[Wanted]:
    """Return the sockets that the process would open."""
    config = plan.config
    if plan.plays("pcscf"):
        yield from _sip("pcscf.listen", config.pcscf.listen)
        if str(config.network.gm) != "off":
            yield _wanted("pcscf.gm_listen", "udp", config.pcscf.gm_listen, sip=True)
        yield from _sip("pcscf.listen_tls", config.pcscf.listen_tls, "tcp")
    if plan.plays("icscf"):
        yield from _sip("icscf.listen", config.icscf.listen)
    for where, scscf in plan.scscfs:
        yield from _sip(f"{where}.listen", scscf.listen)
    yield from _of_servers(plan.servers)
    if plan.plays("admin"):
        yield _wanted("admin.listen", "tcp", config.admin.listen)
    for name in ("listen_diameter", "listen_diameters") if plan.plays("hss") else ():
        if getattr(config.hss, name) is not None:
            yield _wanted(f"hss.{name}", "tcp", getattr(config.hss, name))


def _of_servers(servers: Sequence[tuple[str, ApplicationServer]]) -> Iterator[Wanted]:
    shared: set[str] = set()
    for where, server in servers:
        if server.sip_uri not in shared:  # those at one SIP URI share a listener
            yield from _sip(f"{where}.listen_sip", server.listen_sip)
            yield from _sip(f"{where}.listen_sips", server.listen_sips, "tcp")
        shared.add(server.sip_uri)
        for name in ("listen_https", "listen_psk13", "listen_psk12", "listen_http"):
            if getattr(server, name) is not None:
                yield _wanted(f"{where}.{name}", "tcp", getattr(server, name))


def _sip(where: str, listen: str | None, *protos: str) -> Iterator[Wanted]:
    for proto in protos or ("udp", "tcp"):
        if listen is not None:
            yield _wanted(where, proto, listen, sip=True)


def _wanted(where: str, proto: str, listen: str, *, sip: bool = False) -> Wanted:
    host, port = split_address(listen, where)
    return Wanted(where, proto, host, port, sip)


def _check_listeners(wanted: Sequence[Wanted], *, here: bool) -> None:
    """Refuse a host that is none of this machine's, and two listeners that would want one port."""
    taken: dict[tuple[str, int], list[tuple[str, Wanted]]] = {}
    for one in wanted:
        address = _own_address(one) if here else one.host
        for other_address, other in taken.get((one.proto, one.port), ()) if one.port else ():
            if address == other_address or {address, other_address} & set(WILDCARDS):
                problem = f"port {one.port} is that of {other.where}, too"
                raise ConfigError(one.where, problem, "Give each a port of its own; 0 takes a free one")
        taken.setdefault((one.proto, one.port), []).append((address, one))


def _own_address(one: Wanted) -> str:
    """Return the numeric address that a listener is bound to. Raises ConfigError: it is none of this machine's."""
    kind = socket.SOCK_DGRAM if one.proto == "udp" else socket.SOCK_STREAM
    try:
        family, _, _, _, address = socket.getaddrinfo(one.host, 0, _family(one), kind, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError):
        raise ConfigError(one.where, f"nobody knows the host {one.host}", "Write an address of this machine, such as 127.0.0.1") from None
    if one.sip and address[0] in WILDCARDS:
        raise ConfigError(one.where, "a wildcard address says nobody where to answer", "Write the address that others reach")
    with socket.socket(family, kind) as sock:
        number = _bound(sock, address)
    if number == errno.EADDRNOTAVAIL:
        raise ConfigError(one.where, f"{one.host} is not an address of this machine", "Choose one that `ip address` shows")
    if number:
        raise ConfigError(one.where, f"{one.host} cannot be listened on: {os.strerror(number)}", "Write another address")
    return str(address[0])


def _family(one: Wanted) -> socket.AddressFamily:
    if one.sip or one.where.startswith("hss."):
        return socket.AF_UNSPEC
    return socket.AF_INET6 if ":" in one.host else socket.AF_INET  # as HttpServer.listen


def _busy(wanted: Sequence[Wanted]) -> list[str]:
    """Return a warning for each port that cannot be had now."""
    said = {
        errno.EADDRINUSE: "is in use now, by `serve` itself if it runs: another program there has to end first, or choose another port",
        errno.EACCES: "is not for this user: start `serve` with CAP_NET_BIND_SERVICE, or choose a port above 1023",
    }
    found: dict[str, str] = {}
    for one in wanted:
        kind = socket.SOCK_DGRAM if one.proto == "udp" else socket.SOCK_STREAM
        family, _, _, _, address = socket.getaddrinfo(one.host, one.port, _family(one), kind, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(one.proto == "tcp"))
            number = _bound(sock, address)
        if number:
            found.setdefault(one.where, f"{one.where}: port {one.port} {said.get(number, os.strerror(number))}")
    return list(found.values())


def _bound(sock: socket.socket, address: Any) -> int:
    """Bind a socket; return 0, or the number of what is in the way."""
    try:
        sock.bind(address)
    except OSError as problem:
        return problem.errno or errno.EIO
    return 0


# ---- where requests go


def _check_routes(plan: Plan) -> None:
    """Refuse a SIP URI whose host nobody knows, or that contradicts the listener of the function that it names."""
    config, resolver = plan.config, _resolver_of(plan)
    icscf = {config.icscf.name.lower(): ("icscf.listen", config.icscf.listen)}
    scscfs = {one.name.lower(): (f"{where}.listen", one.listen) for where, one in plan_of(config, ["scscf"]).scscfs}
    if plan.plays("pcscf"):
        _check_route("pcscf.icscf", config.pcscf.icscf, plan, resolver, icscf, type(config.pcscf)().icscf)
    if plan.plays("icscf") and not config.further_scscfs:
        _check_route("icscf.scscf", config.icscf.scscf, plan, resolver, scscfs, type(config.icscf)().scscf)


def _resolver_of(plan: Plan) -> TableResolver:
    """Return what the process will resolve names with."""
    resolver = TableResolver(plan.config.hosts)
    for name, _, tls in _served_names(plan):
        resolver.serve(name, "127.0.0.1", 1, "TLS" if tls else "UDP")
    return resolver


def _unknown_servers(plan: Plan) -> list[str]:
    """Return a warning for each application server that the S-CSCF could not push to; others are served all the same."""
    warnings, resolver = [], _resolver_of(plan)
    for place, server in enumerate(plan.config.application_servers if plan.scscfs else ()):
        try:
            _check_route(f"application_servers[{place}].sip_uri", server.sip_uri, plan, resolver, {}, "")
        except ConfigError as problem:
            warnings.append(str(problem))
    return warnings


def _served_names(plan: Plan) -> list[tuple[str, str, bool]]:
    """Return the names that the functions of the process answer to, the key, and whether over TLS."""
    config, names = plan.config, []
    if plan.plays("pcscf"):
        names.append((config.pcscf.name, "pcscf.name", False))
    if plan.plays("icscf"):
        names.append((config.icscf.name, "icscf.name", False))
    names += [(scscf.name, f"{where}.name", False) for where, scscf in plan.scscfs]
    names += [(parse_sip_uri(one.sip_uri).host, f"{where}.sip_uri", str(one.protection) == "tls") for where, one in plan.servers]
    return names


def _check_route(
    where: str, uri: str, plan: Plan, resolver: TableResolver, listening: dict[str, tuple[str, str]], default: str
) -> None:  # fmt: skip
    checked(where, parse_sip_uri, uri)
    parsed = parse_sip_uri(uri)
    try:
        resolver.resolve(parsed)
    except TransportError as problem:
        known = {*plan.config.hosts, *(name for name, _, _ in _served_names(plan))}
        remedy = did_you_mean(parsed.host, known, f'Add "{parsed.host}" = "HOST:PORT" under [hosts], or name a function of this process')
        raise ConfigError(where, f"{problem.peer} {problem.problem}", remedy) from None
    key, listen = listening.get(parsed.host, ("", ""))
    port = split_address(listen, key)[1] if listen else 0
    in_hosts = parsed.host in {name.lower().rstrip(".") for name in plan.config.hosts}
    if port and parsed.port not in {None, port} and not in_hosts and uri != default:
        contradiction = f"names port {parsed.port}, and {key} is {listen}"
        raise ConfigError(where, contradiction, f"Write {parsed.scheme}:{parsed.host}:{port}")


# ---- the HSS


def _check_diameter(plan: Plan) -> None:
    hss = plan.config.hss
    listens = plan.plays("hss") and (hss.listen_diameter is not None or hss.listen_diameters is not None)
    asks = bool(plan.config.cx.peers) and plan.plays("icscf", "scscf")
    if (listens or asks) and importlib.util.find_spec("diameter") is None:
        raise ConfigError("hss" if listens else "cx", "needs the library python-diameter", "Run pip install 'keyferry[diameter]'")
    if plan.plays("hss") and not listens and not plan.plays("icscf", "scscf"):
        raise ConfigError("hss", "has no listener, and nothing in this process asks it", 'Set hss.listen_diameter = "127.0.0.1:3868"')


def _check_rspauth(plan: Plan) -> None:
    """Refuse a socket for Kamailio whose user, group or folder this machine has not. Raises ConfigError."""
    settings, hss = plan.config.kamailio, plan.config.hss
    listens = plan.plays("hss") and (hss.listen_diameter is not None or hss.listen_diameters is not None)
    if listens and settings.rspauth_socket is not None:
        try:
            group_of(settings, user_id(settings.user, "kamailio.user"))
            check_folder(Path(settings.rspauth_socket))
        except StateError as problem:
            raise ConfigError("kamailio.rspauth_socket", f"{problem.where} {problem.problem}", problem.remedy) from None


# ---- doors


def _check_door(where: str, server: ApplicationServer) -> None:
    """Refuse an application that cannot be had, or a door that could not be put before it. Raises ConfigError."""
    as_id = parse_as_id(server.as_id)
    static = [_static(where, server.static_keys)] if server.static_keys else [StaticKeys(())]
    try:
        application = application_of(server)
        if isinstance(application, SimLogin):
            check_as_id(application, as_id)
        else:
            guarded(application, server, as_id, static, clock=SystemClock(), user_id_key=Secret(os.urandom(32)))
    except ConfigError as problem:
        key = problem.where.partition(" ")[2] or problem.where  # SimLogin says "SimLogin qop"
        raise ConfigError(f"{where}.{key}" if hasattr(server, key) else where, problem.problem, problem.remedy) from None


def _static(where: str, file: str) -> StaticKeys:
    try:
        return load_static_keys(Path(file))
    except ConfigError as problem:
        folder = Path(file).parent
        there = [str(folder / each.name) for each in folder.iterdir()] if folder.is_dir() and not Path(file).exists() else []
        otherwise = problem.remedy or f"Correct the file; its path begins at {Path.cwd()}"
        remedy = did_you_mean(str(Path(file)), there, otherwise)
        raise ConfigError(f"{where}.static_keys", f"{problem.where} {problem.problem}", remedy) from None


# ---- certificates


def _check_certificates(plan: Plan, pki: Pki) -> None:
    """Refuse those that are in the state directory and could not be used. Raises StateError."""
    config = plan.config
    over_tls = [one for one in config.application_servers if str(one.protection) == "tls"]
    wanted: list[tuple[str, str]] = [(parse_as_id(server.as_id), "as") for _, server in plan.servers]
    wanted += [(parse_sip_uri(server.sip_uri).host, "as") for _, server in plan.servers if str(server.protection) == "tls"]
    wanted += [(scscf.name, "scscf") for _, scscf in plan.scscfs if over_tls]
    if plan.plays("pcscf") and config.pcscf.listen_tls is not None:
        wanted.append((config.pcscf.name, "pcscf"))
    if plan.plays("hss") and config.hss.listen_diameters is not None:
        wanted.append((config.hss.name, "hss"))
    if any(peer.tls for peer in cx_peers(config.cx, config.hosts)):
        wanted += [(scscf.name, "scscf") for _, scscf in plan.scscfs] + [(config.icscf.name, "icscf")] * plan.plays("icscf")
    for name, role in dict.fromkeys(wanted):
        pki.check(name, role)


# ---- warnings


def _unknown_peers(config: Config) -> list[str]:
    """Return a warning for each HSS whose name is not in [hosts], and that this machine cannot look up either."""
    warnings = []
    for place, peer in enumerate(cx_peers(config.cx, config.hosts)):
        try:
            socket.getaddrinfo(peer.host, peer.port)
        except (OSError, UnicodeError):
            remedy = "write its address there, or where the S-CSCF runs in /etc/hosts or DNS"
            warnings.append(f"cx.peers[{place}]: {peer.host} is not in [hosts], and cannot be looked up here: {remedy}")
    return warnings


def _strange_domains(config: Config) -> list[str]:
    """Return a warning for each home domain that subscribers have and the network has not."""
    home = config.network.home_domain
    found: dict[str, str] = {}
    for place, subscriber in enumerate(config.subscribers):
        domains = {domain_of(impu) for impu in subscriber.impus} - {""}
        if domains and home.lower() not in domains:
            found.setdefault(min(domains), f"subscribers[{place}].impus")
    return [
        f"{where}: none is of network.home_domain {home!r}, which a UE registers with: is {domain} the home domain?"
        for domain, where in found.items()
    ]


def domain_of(impu: str) -> str:
    """Return the host of a SIP identity; "" of a telephone number."""
    return "" if impu.lower().startswith("tel:") else impu.rpartition("@")[2].partition(":")[0].lower()
