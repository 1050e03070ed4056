# SPDX-License-Identifier: Apache-2.0
"""Configuration: one TOML file, every key with its unit and default, unknown keys refused (DESIGN §12)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from keyferry.config.cx import Cx as Cx
from keyferry.config.cx import Hss as Hss
from keyferry.config.cx import check_cx, check_hss
from keyferry.config.explaining import did_you_mean
from keyferry.config.ipsec import Child, Identity, check_ipsec
from keyferry.config.ipsec import Ipsec as Ipsec
from keyferry.config.kamailio import Kamailio as Kamailio
from keyferry.config.lines import located
from keyferry.config.profiles import Profile, check_profile_of, check_profiles
from keyferry.config.profiles import names_of as profile_names
from keyferry.config.reading import Section as _Section
from keyferry.config.reading import TrustedOnIsc, UnsealedEnds, address_of, check_protection, check_trusted, checked, load_file
from keyferry.config.reading import decode_secret as decode_secret
from keyferry.config.reading import split_address as split_address
from keyferry.errors import ConfigError, ParseError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_as_id, parse_impi, parse_impu
from keyferry.protocol.ims.key_store_id import MAX_STORES
from keyferry.protocol.sip.uri import parse_sip_uri

AGENT = "agent"
"""The `app` of an application server whose keys a `keyferry agent` takes."""
_OF_SIP_URI = (
    "protection", "ipsec_child", "ipsec_identity", "trusted_peers", "listen_sip", "listen_sips", "default_handling", "service_info",
    "include_register_request", "include_register_response", "reg_event", "pushers", "unsealed_ends",
)  # fmt: skip
"""What application servers at one SIP URI have in common: they share a filter criterion and, if they run here, a listener."""

Address = Annotated[str, Meta(description="`HOST:PORT`, an IPv6 host in brackets; port 0 takes a free one")]
Seconds = Annotated[float, Meta(ge=0)]
Ports = Annotated[
    dict[str, Annotated[int, Meta(ge=1, le=65535)]],
    Meta(description="AS_ID → port of its `listen_psk13`, for `ue.psk`; names may have U-labels or A-labels"),
]


class Network(_Section, frozen=True, kw_only=True):
    """The home network."""

    home_domain: Annotated[str, Meta(description="home network domain name; also the realm of the SIP challenge")] = "home1.net"
    amf_bit: Annotated[bool, Meta(description="HSS: set AMF bit 15 (proprietary) in vectors whose keys the S-CSCF will mask")] = True
    gm: Annotated[
        Literal["off", "optional", "required"],
        Meta(description="security agreement and ESP between UE and P-CSCF: none, for UEs that ask for it, or for all"),
    ] = "off"
    overload: Annotated[
        Literal["on", "off"],
        Meta(description="refuse first REGISTERs with 503 while a P-, I- or S-CSCF has more to do than it can; second ones never"),
    ] = "on"
    warnings: Annotated[
        bool, Meta(description="let a 504 of P- and I-CSCF name in a Warning the hosts that did not answer: for a laboratory, UEs read it")
    ] = False


class Pcscf(_Section, frozen=True, kw_only=True):
    """P-CSCF."""

    name: Annotated[str, Meta(description="host name in its SIP URI")] = "pcscf1.home1.net"
    listen: Address = "127.0.0.1:5060"
    gm_listen: Annotated[str, Meta(description="`HOST:PORT` for ESP in UDP, unless `network.gm` is `off`; an address UEs reach")] = (
        "127.0.0.1:14500"
    )
    listen_tls: Annotated[
        str | None, Meta(description="`HOST:PORT` for UEs over TLS, which know us by our certificate and need none; usual is port 5061")
    ] = None
    icscf: Annotated[str, Meta(description="SIP URI of the home network's I-CSCF")] = "sip:icscf.home1.net:5062"
    reg_event: Annotated[bool, Meta(description="subscribe to each user's registration state; end what the network has ended")] = False


Trusted = Annotated[
    list[str],
    Meta(
        description="IP addresses and prefixes, besides loopback, that may send requests here: a 401 carries keys for the P-CSCF, and "
        "this machine's other addresses have to be listed; [what that grants](security.md#whom-the-lists-trust)"
    ),
]


class Icscf(_Section, frozen=True, kw_only=True):
    """I-CSCF."""

    name: Annotated[str, Meta(description="host name in its SIP URI")] = "icscf.home1.net"
    listen: Address = "127.0.0.1:5062"
    scscf: Annotated[str, Meta(description="SIP URI of the S-CSCF for users that have none; not used with `further_scscfs`")] = (
        "sip:scscf1.home1.net:6060"
    )
    patience: Annotated[
        float,
        Meta(gt=0, le=30, description="seconds of silence after which a first REGISTER goes to another S-CSCF, if there is one"),
    ] = 4.0
    trusted_peers: Trusted = msgspec.field(default_factory=list)


class Scscf(_Section, frozen=True, kw_only=True):
    """S-CSCF."""

    name: Annotated[str, Meta(description="host name in its SIP URI; an input of the seal of every push")] = "scscf1.home1.net"
    listen: Address = "127.0.0.1:6060"
    release: Annotated[int, Meta(ge=5, le=255, description="3GPP release to behave as; 5: no marker, raw keys, no push")] = 6
    release_info: Annotated[
        Literal["always", "capable"], Meta(description="put the release marker in every nonce, or only for UEs that state a release")
    ] = "always"
    marker_octets: Annotated[
        int, Meta(ge=4, le=64, description="octets of the marker, filled up with zeros: for testing how peers take a long nonce")
    ] = 4
    mask: Annotated[bool, Meta(description="give the P-CSCF CK', IK' where the UE states Release 6 or later")] = True
    min_expires: Annotated[int, Meta(ge=0, description="seconds; a shorter registration is answered 423")] = 60
    max_expires: Annotated[int, Meta(ge=1, description="seconds granted at most")] = 600_000
    p_associated_uri: Annotated[
        Literal["combined", "separate"], Meta(description="P-Associated-URI of a 200: one header field with a list, or one per identity")
    ] = "combined"
    reg_await_auth: Annotated[Seconds, Meta(description="seconds that a challenge waits for its answer")] = 240.0
    push_wait: Annotated[Seconds, Meta(le=0.45, description="seconds that a 200 waits for its pushes; under T1 (0.5 s)")] = 0.25
    key_max_age: Annotated[Seconds, Meta(le=604_800, description="seconds after its AKA run that an AS key ends at the latest")] = 86_400.0
    reauth_age: Annotated[
        Seconds,
        Meta(description="seconds after its AKA run that a re-REGISTER over a protected Gm passes without a challenge; 0: challenge all"),
    ] = 43_200.0
    as_probe: Annotated[
        Seconds,
        Meta(description="seconds between questions to an idle AS whether it is there and still has its keys; 0: never asked"),
    ] = 2.0
    repush_rate: Annotated[
        int, Meta(ge=1, le=100_000, description="registrations a second whose keys are pushed again to an AS that lost them")
    ] = 500
    hss_requests: Annotated[
        int, Meta(ge=1, le=100_000, description="RTRs and PPRs of the HSS carried out at a time; more are answered DIAMETER_TOO_BUSY")
    ] = 1_024
    trusted_peers: Trusted = msgspec.field(default_factory=list)
    sweep: Annotated[float, Meta(gt=0, description="seconds between looks for expired registrations")] = 1.0


class ApplicationServer(_Section, frozen=True, kw_only=True):
    """One application server: a SIP side for pushes, an HTTPS door, an application behind it."""

    as_id: Annotated[str, Meta(description="host name that the UE opens; names the key")]
    sip_uri: Annotated[
        str, Meta(description="ServerName in the filter criteria: where pushes go; several application servers may have the same")
    ]
    protection: Annotated[
        Literal["loopback", "tls", "ipsec"],
        Meta(
            description="where keys may go: to loopback addresses and those in `trusted_peers`; over TLS to the host in `sip_uri`, both "
            "ends shown by certificates; or through a CHILD_SA of which charon says, before every transmission, that it is "
            "there and is the one named below"
        ),
    ] = "loopback"
    ipsec_child: Child = None
    ipsec_identity: Identity = None
    trusted_peers: TrustedOnIsc = msgspec.field(default_factory=list)
    listen_sip: Annotated[str | None, Meta(description="`HOST:PORT` for pushes; needed with `loopback` and `ipsec`")] = None
    listen_sips: Annotated[str | None, Meta(description="`HOST:PORT` for pushes over TLS; needed with `tls`")] = None
    listen_https: Annotated[str | None, Meta(description="`HOST:PORT` of the door; needed unless `app` is `agent`")] = None
    listen_psk13: Annotated[
        str | None,
        Meta(description="`HOST:PORT` for TLS 1.3 with the pushed key and no certificate; a Python below 3.13 warns, and does without"),
    ] = None
    listen_psk12: Annotated[str | None, Meta(description="the same in TLS 1.2 with `psk12_suite`; a listener of its own")] = None
    psk12_suite: Annotated[
        Literal["ECDHE-PSK-CHACHA20-POLY1305", "ECDHE-PSK-AES128-CBC-SHA256", "ECDHE-PSK-AES256-CBC-SHA384"],
        Meta(description="the one suite of `listen_psk12`, as OpenSSL names it; the key depends on it"),
    ] = "ECDHE-PSK-CHACHA20-POLY1305"
    app: Annotated[
        str,
        Meta(
            description="`xcap`, `notes`, `module:attribute` of an ASGI application of your own, or `agent`: a `keyferry agent` takes the "
            "pushes, and `serve` listens neither for them nor for HTTPS"
        ),
    ] = "xcap"
    default_handling: Annotated[int, Meta(ge=0, le=1, description="DefaultHandling of the filter criteria")] = 0
    service_info: Annotated[str | None, Meta(description="ServiceInfo of the filter criteria, besides the keys")] = None
    include_register_request: Annotated[
        bool, Meta(description="IncludeRegisterRequest of the filter criteria: a copy of the REGISTER goes along, without its proof")
    ] = False
    include_register_response: Annotated[
        bool, Meta(description="IncludeRegisterResponse of the filter criteria: a copy of the 200 goes along, without its proof")
    ] = False
    algorithms: Annotated[list[Literal["SHA-256", "MD5"]], Meta(min_length=1, description="Digest algorithms offered, strongest first")] = (
        msgspec.field(default_factory=lambda: ["SHA-256"])
    )
    qop: Annotated[
        list[Literal["auth", "auth-int"]],
        Meta(min_length=1, description="what a Digest response covers; `auth-int`, with SHA-256 alone: the bodies too, up to 16 MiB each"),
    ] = msgspec.field(default_factory=lambda: ["auth"])
    handsets: Annotated[
        Literal["token", "always", "never"],
        Meta(description="who is taken for a phone, and offered keys of phones alone: those that say `3gpp-gba`, everybody, or nobody"),
    ] = "token"
    static_keys: Annotated[
        str | None,
        Meta(description="file of keys for tests of phones (mode 0600; see docs/phones.md); pushed keys are never offered to phones"),
    ] = None
    listen_http: Annotated[
        str | None,
        Meta(description="`HOST:PORT` of the door without TLS, for phones; never for pushed keys. Needs the next key and `static_keys`"),
    ] = None
    http_networks: Annotated[
        list[str], Meta(description="networks (`10.46.0.0/16`) whose clients may use `listen_http`: the address pools of the xcap APN")
    ] = msgspec.field(default_factory=list)
    reg_event: Annotated[
        bool,
        Meta(description="subscribe to the registration state of each user; erase the keys where it says that one ended"),
    ] = False
    pushers: Annotated[list[str], Meta(description="S-CSCFs that may push; empty: those of this file")] = msgspec.field(
        default_factory=list
    )
    unsealed_ends: UnsealedEnds = msgspec.field(default_factory=list)


class SharedIfc(_Section, frozen=True, kw_only=True):
    """A set of filter criteria that the S-CSCFs hold; profiles of the HSS name it instead of its criteria (TS 29.228 §6.1.2.1)."""

    id: Annotated[int, Meta(ge=0, le=999_999, description="SharedIFCSetID")]
    application_servers: Annotated[
        list[str], Meta(min_length=1, description="`as_id` of each application server whose criterion is in this set and nowhere else")
    ]


class Admin(_Section, frozen=True, kw_only=True):
    """Health and metrics."""

    listen: Address = "127.0.0.1:8080"


class Logging(_Section, frozen=True, kw_only=True):
    """What goes into the log; `serve` reads it again on SIGHUP."""

    level: Annotated[
        Literal["info", "warning", "error"],
        Meta(description="leave out what is less than this; `serve --log-level` goes before it"),
    ] = "info"


class Subscriber(_Section, frozen=True, kw_only=True):
    """A subscriber that `serve` provisions at start and on SIGHUP; keys in hexadecimal."""

    impi: Annotated[str, Meta(description="private identity")]
    impus: Annotated[list[str], Meta(min_length=1, description="public identities of one implicit registration set, the default first")]
    k: Annotated[Secret, Meta(description="K, 16 octets (TUAK: 16 or 32)")]
    opc: Annotated[Secret | None, Meta(description="OPc, 16 octets (TUAK: TOPc, 32)")] = None
    op: Annotated[Secret | None, Meta(description="OP or TOP instead of OPc")] = None
    algorithm: Annotated[Literal["milenage", "tuak"], Meta(description="AKA functions")] = "milenage"
    amf: Annotated[str, Meta(pattern="^[0-9a-fA-F]{4}$", description="AMF, 2 octets in hexadecimal")] = "8000"
    barred: Annotated[list[str], Meta(description="those of `impus` that are barred")] = msgspec.field(default_factory=list)
    profile: Annotated[
        str | None, Meta(description="name of one of `profiles`; default: what `keyferry subscriber profile` gave it last, or `default`")
    ] = None
    release: Annotated[
        Annotated[int, Meta(ge=5, le=255)] | None,
        Meta(description="3GPP release of the UE, for the S-CSCFs of `hss.marker_for`; others see it in the Contact"),
    ] = None

    def __post_init__(self) -> None:
        """Refuse what the HSS could not use."""
        if (self.opc is None) == (self.op is None):
            raise ValueError("needs exactly one of opc and op")


class Config(_Section, frozen=True, kw_only=True):
    """A whole file for `keyferry serve`."""

    network: Network = msgspec.field(default_factory=Network)
    pcscf: Pcscf = msgspec.field(default_factory=Pcscf)
    icscf: Icscf = msgspec.field(default_factory=Icscf)
    scscf: Scscf = msgspec.field(default_factory=Scscf)
    further_scscfs: Annotated[
        list[Scscf], Meta(description="S-CSCFs besides the one above, each with a name and a port of its own; the HSS spreads the users.")
    ] = msgspec.field(default_factory=list)
    hss: Hss = msgspec.field(default_factory=Hss)
    cx: Cx = msgspec.field(default_factory=Cx)
    kamailio: Kamailio = msgspec.field(default_factory=Kamailio)
    admin: Admin = msgspec.field(default_factory=Admin)
    log: Logging = msgspec.field(default_factory=Logging)
    ipsec: Ipsec = msgspec.field(default_factory=Ipsec)
    application_servers: list[ApplicationServer] = msgspec.field(default_factory=list)
    shared_ifc: list[SharedIfc] = msgspec.field(default_factory=list)
    profiles: list[Profile] = msgspec.field(default_factory=list)
    subscribers: list[Subscriber] = msgspec.field(default_factory=list)
    hosts: Annotated[
        dict[str, str], Meta(description="SIP host names → `HOST` or `HOST:PORT`, before names of this file's own functions")
    ] = msgspec.field(default_factory=dict)

    @property
    def scscfs(self) -> list[Scscf]:
        """Every S-CSCF of the file."""
        return [self.scscf, *self.further_scscfs]


class Ue(_Section, frozen=True, kw_only=True):
    """The UE."""

    impi: Annotated[str, Meta(description="private identity")]
    impu: Annotated[str, Meta(description="public identity to register")]
    k: Annotated[Secret, Meta(description="K in hexadecimal")]
    opc: Annotated[Secret | None, Meta(description="OPc in hexadecimal")] = None
    op: Annotated[Secret | None, Meta(description="OP instead of OPc")] = None
    algorithm: Annotated[Literal["milenage", "tuak"], Meta(description="AKA functions")] = "milenage"
    home_domain: Annotated[str, Meta(description="home network domain name")] = "home1.net"
    pcscf: Address = "127.0.0.1:5060"
    transport: Annotated[Literal["udp", "tcp", "tls"], Meta(description="towards the P-CSCF")] = "udp"
    pcscf_name: Annotated[
        str | None, Meta(description="over TLS: host name that the P-CSCF's certificate must show; default: the host in `pcscf`")
    ] = None
    gm: Annotated[
        Literal["off", "required"],
        Meta(description="`required`: security agreement, and every REGISTER after the challenge through ESP, or no registration"),
    ] = "off"
    pcscf_gm: Annotated[str, Meta(description="`HOST:PORT` where the P-CSCF takes ESP in UDP")] = "127.0.0.1:14500"
    release: Annotated[int, Meta(ge=5, le=255, description="3GPP release to state; 5 states none")] = 6
    expires: Annotated[int, Meta(ge=1, description="seconds of registration to ask for")] = 600_000
    require_keys: Annotated[bool, Meta(description="fail where the network gives no AS keys")] = False
    rspauth: Annotated[
        Literal["scscf", "as"],
        Meta(description="who must prove that AS keys are good; `as`: where the S-CSCF promises no rspauth, each AS"),
    ] = "scscf"
    amf_bit: Annotated[
        Literal["ignored", "required"],
        Meta(description="activate AS keys only where AUTN's AMF says that the HSS meant the vector for them"),
    ] = "ignored"
    xcap_root: Annotated[str, Meta(description="what a path given to `ue get`, `put`, `delete` is relative to")] = (
        "https://xcap.home1.net:8443/"
    )
    ca: Annotated[
        str | None, Meta(description="CA certificate of the application servers, and of the P-CSCF over TLS; default: STATE/ca.pem")
    ] = None
    psk: Annotated[
        Literal["off", "prefer", "require"],
        Meta(description="TLS with the key: never; else Digest, and a minute later TLS again; or nothing else"),
    ] = "off"
    instance: Annotated[
        Annotated[str, Meta(pattern=r"^urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")] | None,
        Meta(description="urn:uuid:… of this device (+sip.instance); default: made of the IMPI. Two devices of one subscriber need two"),
    ] = None

    def __post_init__(self) -> None:
        """Refuse what the ISIM could not use."""
        if (self.opc is None) == (self.op is None):
            raise ValueError("needs exactly one of opc and op")


class UeConfig(_Section, frozen=True, kw_only=True):
    """A whole file for `keyferry ue`."""

    ue: Ue
    hosts: Annotated[dict[str, str], Meta(description="host names → addresses, before DNS")] = msgspec.field(default_factory=dict)
    psk_ports: Ports = msgspec.field(default_factory=dict)


KEY_OCTETS: dict[str, dict[str, tuple[int, ...]]] = {
    "milenage": {"k": (16,), "opc": (16,), "op": (16,)},  # TS 35.206 §2
    "tuak": {"k": (16, 32), "opc": (32,), "op": (32,)},  # TS 35.231 §3
}


def load_config(path: Path) -> Config:
    """Read the file of `keyferry serve`. Raises ConfigError."""
    config = load_file(path, Config)
    with located(path):
        _check_names(path, config)
        _check_peers(path, config)
        check_hss(path, config.hss)
        check_cx(path, config.cx, config.hosts)
    return config


def load_ue_config(path: Path) -> UeConfig:
    """Read the file of `keyferry ue`. Raises ConfigError."""
    config = load_file(path, UeConfig)
    with located(path):
        _check_ue(path, config)
    return config


def _check_ue(path: Path, config: UeConfig) -> None:
    checked(f"{path}: ue.impi", parse_impi, config.ue.impi)
    checked(f"{path}: ue.impu", parse_impu, config.ue.impu)
    _check_keys(f"{path}: ue", config.ue)
    host, _ = split_address(config.ue.pcscf, f"{path}: ue.pcscf")
    if config.ue.transport == "tls" and config.ue.pcscf_name is None and address_of(host) is not None:
        remedy = "Set ue.pcscf_name to its host name"
        raise ConfigError(f"{path}: ue.pcscf", "a certificate names a host, and this is an address", remedy)
    split_address(config.ue.pcscf_gm, f"{path}: ue.pcscf_gm")


SECTIONS: tuple[type[_Section], ...] = (
    Network, Pcscf, Icscf, Scscf, Hss, Cx, Kamailio, ApplicationServer, SharedIfc, Profile, Admin, Logging, Ipsec, Subscriber, Ue
)  # fmt: skip


def _check_peers(path: Path, config: Config) -> None:
    """Refuse an I-CSCF or S-CSCF that strangers can reach and that trusts nobody in particular: it gives keys to whom it answers."""
    sections: list[tuple[str, Icscf | Scscf]] = [("icscf", config.icscf), ("scscf", config.scscf)]
    sections += [(f"further_scscfs[{place}]", section) for place, section in enumerate(config.further_scscfs)]
    for name, section in sections:
        host, _ = split_address(section.listen, f"{path}: {name}.listen")
        check_trusted(f"{path}: {name}.trusted_peers", section.trusted_peers)
        address = address_of(host)
        if (address is None or not address.is_loopback) and not section.trusted_peers:
            remedy = f"Add the addresses of the functions in front of it to {name}.trusted_peers, or listen on 127.0.0.1"
            raise ConfigError(f"{path}: {name}.listen", "other machines can reach it, and none is trusted", remedy)


def _check_names(path: Path, config: Config) -> None:
    _check_shared(path, config, _check_servers(path, config.application_servers))
    check_profiles(path, config.profiles, {checked("", parse_as_id, server.as_id): server.sip_uri for server in config.application_servers})
    _check_scscfs(path, config)
    check_ipsec(path, config.application_servers, config.scscfs)
    for name in ("pcscf", "icscf", "admin"):
        split_address(getattr(config, name).listen, f"{path}: {name}.listen")
    split_address(config.pcscf.gm_listen, f"{path}: pcscf.gm_listen")
    if config.pcscf.listen_tls is not None:
        split_address(config.pcscf.listen_tls, f"{path}: pcscf.listen_tls")
    _check_hosts(path, config)
    _check_subscribers(path, config)


def _check_hosts(path: Path, config: Config) -> None:
    """Refuse names that no SIP URI could have, and addresses that are none."""
    for name in ("pcscf", "icscf"):
        _check_host(f"{path}: {name}.name", getattr(config, name).name)
    for place, scscf in enumerate(config.scscfs):
        _check_host(f"{path}: further_scscfs[{place - 1}].name" if place else f"{path}: scscf.name", scscf.name)
    _check_host(f"{path}: network.home_domain", config.network.home_domain)
    checked(f"{path}: pcscf.icscf", parse_sip_uri, config.pcscf.icscf)
    checked(f"{path}: icscf.scscf", parse_sip_uri, config.icscf.scscf)
    for name, address in config.hosts.items():
        if address.count(":") == 1 or address.startswith("["):
            split_address(address, f'{path}: hosts."{name}"')
        elif not address:
            raise ConfigError(f'{path}: hosts."{name}"', "is empty", "Write HOST or HOST:PORT")


def _check_host(where: str, name: str) -> None:
    try:
        good = "@" not in name and parse_sip_uri(f"sip:{name}").port is None and ";" not in name
    except ParseError:
        good = False
    if not good:
        raise ConfigError(where, f"{name!r} is no host name", "Write for example home1.net")


def _check_subscribers(path: Path, config: Config) -> None:
    """Refuse what the HSS could not store: an identity belongs to one subscriber, once."""
    profiles, owners = profile_names(config.profiles), dict[str, str]()
    for place, subscriber in enumerate(config.subscribers):
        where = f"{path}: subscribers[{place}]"
        _own(f"{where}.impi", checked(f"{where}.impi", parse_impi, subscriber.impi), where, owners)
        _check_keys(where, subscriber)
        check_profile_of(f"{where}.profile", subscriber.profile, profiles)
        impus = [checked(f"{where}.impus[{number}]", parse_impu, text) for number, text in enumerate(subscriber.impus)]
        for number, impu in enumerate(impus):
            _own(f"{where}.impus[{number}]", impu, where, owners)
        for number, text in enumerate(subscriber.barred):
            if checked(f"{where}.barred[{number}]", parse_impu, text) not in impus:
                remedy = did_you_mean(text, subscriber.impus, "Add it to impus, or take it out here")
                raise ConfigError(f"{where}.barred[{number}]", f"{text} is not one of impus", remedy)


def _own(where: str, identity: str, owner: str, owners: dict[str, str]) -> None:
    other = owners.get(identity)
    if other == owner:
        raise ConfigError(where, f"{identity} is there twice", "Name it once")
    if other is not None:
        problem = f"{identity} is that of {other.rpartition(': ')[2]}, too"
        raise ConfigError(where, problem, "An identity belongs to one subscriber: correct it, or remove one of both")
    owners[identity] = owner


def _check_servers(path: Path, servers: Sequence[ApplicationServer]) -> set[str]:
    """Check the application servers, each by itself and against those at the same SIP URI; return their AS_IDs."""
    seen: set[str] = set()
    first: dict[str, ApplicationServer] = {}
    for place, server in enumerate(servers):
        where = f"{path}: application_servers[{place}]"
        as_id = checked(f"{where}.as_id", parse_as_id, server.as_id)
        if as_id in seen:
            raise ConfigError(f"{where}.as_id", f"{as_id} is there twice", "One AS_ID is one application server")
        seen.add(as_id)
        _check_door(where, server)
        other = first.setdefault(server.sip_uri, server)
        names = [name for name in _OF_SIP_URI if getattr(server, name) != getattr(other, name)]
        if (server.app == AGENT) is not (other.app == AGENT):
            names.append("app")
        if names:
            problem = f"is not that of {other.as_id}, which has the same sip_uri"
            raise ConfigError(f"{where}.{names[0]}", problem, "Give both the same, or each a SIP URI of its own")
        if sum(one.sip_uri == server.sip_uri for one in servers) > MAX_STORES:
            raise ConfigError(f"{where}.sip_uri", f"is that of over {MAX_STORES} application servers", "Spread them over several")
    return seen


def _check_door(where: str, server: ApplicationServer) -> None:
    """Refuse an application server that would have no door, and listeners of one that a key agent stands for."""
    if server.app != AGENT:
        if server.listen_https is None:
            raise ConfigError(f"{where}.listen_https", "is missing", 'Add listen_https = "HOST:PORT", or app = "agent"')
        _check_plain(where, server)
        for name in ("listen_https", "listen_psk13", "listen_psk12", "listen_http"):
            split_address(getattr(server, name) or server.listen_https, f"{where}.{name}")
        check_protection(where, server)
        return
    for name in ("listen_https", "listen_psk13", "listen_psk12", "listen_http", "listen_sip", "listen_sips"):
        if getattr(server, name) is not None:
            raise ConfigError(f"{where}.{name}", "is not used with app 'agent'", "It belongs into the file of `keyferry agent`")
    check_protection(where, server, listens=False)


def _check_plain(where: str, server: ApplicationServer) -> None:
    if server.listen_http is not None and not (server.http_networks and server.static_keys):
        problem = "is for phones of named networks, and pushed keys are never used over it"
        raise ConfigError(f"{where}.listen_http", problem, "Add http_networks, the address pools of the xcap APN, and static_keys")


def _check_shared(path: Path, config: Config, known: set[str]) -> None:
    """Refuse sets that cannot be told apart, and an application server that would have two criteria or none."""
    ids: set[int] = set()
    shared: set[str] = set()
    for place, one in enumerate(config.shared_ifc):
        where = f"{path}: shared_ifc[{place}]"
        if one.id in ids:
            raise ConfigError(f"{where}.id", f"{one.id} is there twice", "Give every set a number of its own")
        ids.add(one.id)
        for text in one.application_servers:
            as_id = checked(f"{where}.application_servers", parse_as_id, text)
            if as_id not in known:
                raise ConfigError(f"{where}.application_servers", f"{as_id} is no application server of this file", "Name its as_id")
            if as_id in shared:
                raise ConfigError(f"{where}.application_servers", f"{as_id} is there twice", "Name it in one set, once")
            shared.add(as_id)


def _check_scscfs(path: Path, config: Config) -> None:
    """Refuse two S-CSCFs of one name, which would share a database and the keys of their seals, or at one address."""
    names: set[str] = set()
    addresses: set[tuple[str, int]] = set()
    for place, scscf in enumerate(config.scscfs):
        where = f"{path}: further_scscfs[{place - 1}]" if place else f"{path}: scscf"
        address = split_address(scscf.listen, f"{where}.listen")
        if scscf.name.lower() in names:
            raise ConfigError(f"{where}.name", f"{scscf.name} is there twice", "Give every S-CSCF a name of its own")
        if address[1] and address in addresses:
            raise ConfigError(f"{where}.listen", f"{scscf.listen} is there twice", "Give every S-CSCF a port of its own")
        names.add(scscf.name.lower())
        addresses.add(address)


def _check_keys(where: str, settings: Subscriber | Ue) -> None:
    for name, octets in KEY_OCTETS[settings.algorithm].items():
        key: Secret | None = getattr(settings, name)
        if key is not None and len(key) not in octets:
            problem = f"is {len(key)} octets long, {settings.algorithm} takes {' or '.join(map(str, octets))}"
            raise ConfigError(f"{where}.{name}", problem, "Write two hexadecimal digits an octet")
