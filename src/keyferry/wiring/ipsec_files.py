# SPDX-License-Identifier: Apache-2.0
"""What `keyferry ipsec` writes for strongSwan and nftables: the profile of TS 33.210 §5.3, §5.4 and TS 33.310 §6 (Release 17) for ISC."""

from __future__ import annotations

import base64
import gzip
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

from keyferry.config import Config, split_address
from keyferry.config.ipsec import child_of, identity_of, unfit
from keyferry.config.reading import address_of
from keyferry.errors import ConfigError, ParseError, StateError, TransportError
from keyferry.protocol.identity import parse_as_id
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.pki import Pki
from keyferry.transports.resolver import TableResolver
from keyferry.wiring.ipsec_rules import NEIGHBOURS, Pair, Side, drop_rules
from keyferry.wiring.protection import opened_state

Esp = Literal["kernel", "userspace"]
Authentication = Literal["certificate", "psk"]

IKE_PROPOSALS: Final = "aes128gcm16-prfsha256-ecp256, aes128-sha256-ecp256, aes128-sha256-modp2048"
"""TS 33.210 §5.4.2: AES-GCM-16 or AES-CBC with HMAC-SHA-256-128, PRF HMAC-SHA-256, group 19 or 14."""
ESP_PROPOSALS: Final = "aes128gcm16-ecp256, aes128-sha256-ecp256, aes128-sha256-modp2048"
"""TS 33.210 §5.3.3, §5.3.4; with the groups each rekeying has forward secrecy. No NULL: the packets carry keys."""
PSK_OCTETS: Final = 32
_PSK = re.compile(r"[A-Za-z0-9+/]{43}=", re.ASCII)


@dataclass(frozen=True, slots=True)
class Choices:
    """What the administrator chose."""

    side: Side
    esp: Esp
    authentication: Authentication
    vici: str
    group: str | None = None  # whose members may use the control socket


def pairs_of(config: Config) -> list[Pair]:
    """Return each pair of addresses that a file wants protected, once. Raises ConfigError."""
    resolver = TableResolver(config.hosts)
    pairs: dict[tuple[str, str], Pair] = {}
    for place, server in enumerate(config.application_servers):
        if str(server.protection) != "ipsec":
            continue
        where = f"application_servers[{place}]"
        address, port = _address(where, server.sip_uri, server.listen_sip, resolver)
        for scscf in config.scscfs:
            own, own_port = split_address(scscf.listen, f"{scscf.name}.listen")
            host = _numeric(f"{scscf.name}.listen", own)
            pair = Pair(child_of(server), scscf.name, host, own_port, identity_of(server), address, port)
            known = pairs.setdefault((host, address), pair)
            if (known.child, known.server) != (pair.child, pair.server):
                problem = (
                    f"is at {address}, where {known.server} has the CHILD_SA {known.child}: nobody could tell which one a packet takes"
                )
                raise ConfigError(f"{where}.sip_uri", problem, "Give both the same ipsec_child and ipsec_identity, or other addresses")
    if not pairs:
        raise ConfigError("application_servers", "none has protection 'ipsec'", 'Set protection = "ipsec" for those on other machines')
    return list(pairs.values())


def _address(where: str, sip_uri: str, listen: str | None, resolver: TableResolver) -> tuple[str, int]:
    """Return the numeric address that pushes go to."""
    try:
        hop = resolver.resolve(parse_sip_uri(sip_uri))
    except TransportError:
        if listen is not None:
            host, port = split_address(listen, f"{where}.listen_sip")
            return _numeric(f"{where}.listen_sip", host), port
        raise ConfigError(f"{where}.sip_uri", "has no address", "Add its host under [hosts]") from None
    return _numeric("hosts", hop.host.strip("[]")), hop.port


def _numeric(where: str, text: str) -> str:
    """Return an address in the one form that charon and nft write it in."""
    address = address_of(text)
    problem = "is no address, and an SA is between two" if address is None else unfit(address)
    if address is None or problem:
        raise ConfigError(where, f"{text!r} {problem}", "Write the numeric address there")
    return str(address)


def kernel_has_esp() -> bool:
    """Tell whether this kernel, as far as it says, can do ESP: built in, or as a module."""
    release = os.uname().release
    for name in ("modules.builtin", "modules.dep"):
        try:
            if "/esp4.ko" in Path(f"/lib/modules/{release}/{name}").read_text("utf-8"):
                return True
        except OSError:
            continue
    for config in (Path("/proc/config.gz"), Path(f"/boot/config-{release}")):
        try:
            data = config.read_bytes()
        except OSError:
            continue
        text = gzip.decompress(data).decode() if config.suffix == ".gz" else data.decode()
        return re.search(r"(?m)^CONFIG_INET_ESP=[ym]$", text) is not None
    return False


def write_all(folder: Path, state: Path, pairs: Sequence[Pair], choices: Choices) -> list[Path]:
    """Write everything for one machine into a folder; return the files. Raises ConfigError, StateError."""
    try:
        _make_folder(folder)
        with opened_state(state) as opened:
            return _written(folder, opened.root, pairs, choices)
    except OSError as problem:
        raise StateError(
            str(problem.filename or folder), f"cannot be written: {problem.strerror}", "Give a folder of your own"
        ) from problem


def _owners() -> set[int]:
    """Return who may own what charon is told: root, and whoever writes it."""
    return {0, os.geteuid()}


def _make_folder(folder: Path) -> None:
    """Make it, or take it as it is: its mode is its owner's to say. Raises OSError, StateError."""
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        # A link, too, is its owner's: to where root's files lie, and nobody wants these.
        strange = folder.is_dir() and not {folder.stat().st_uid, folder.lstat().st_uid} <= _owners()
        if strange or (folder.is_dir() and modes_of_others(folder) & 0o022):
            problem = "others may write to it, and put their own configuration in place of this one"
            raise StateError(str(folder), problem, f"Name a new folder, or run: chmod go-w {folder}") from None


def modes_of_others(folder: Path) -> int:
    """Return what group and others may do with a folder, as mode bits. Raises OSError."""
    return stat.S_IMODE(folder.stat().st_mode) & 0o077


def _written(folder: Path, state: Path, pairs: Sequence[Pair], choices: Choices) -> list[Path]:
    files = {"strongswan.conf": strongswan_conf(choices), "isc.nft": drop_rules(pairs, choices.side)}
    copies: dict[str, Path] = {}
    secrets: list[str] = []
    if choices.authentication == "psk":
        secrets = [_psk_secret(state, pair) for pair in pairs]
    else:
        pki = Pki(state, SystemClock())
        for name in {pair.ends(choices.side)[0] for pair in pairs}:
            made = pki.ensure(_host(name), choices.side)
            copies |= {f"x509/{name}.pem": made.certificate, f"private/{name}.key": made.key}
        copies["x509ca/keyferry-ca.pem"] = pki.ca_file
    files["swanctl.conf"] = swanctl_conf(pairs, choices, secrets)
    for name in SWANCTL_FOLDERS:
        _make_folder(folder / name)
    for name, source in copies.items():
        files[name] = source.read_text("ascii")
    for name, text in files.items():
        _write(folder / name, text)
    return [folder / name for name in sorted(files)]


SWANCTL_FOLDERS: Final = (
    "x509", "x509ca", "x509ocsp", "x509aa", "x509ac", "x509crl", "pubkey", "private", "rsa", "ecdsa", "bliss", "pkcs8", "pkcs12"
)  # fmt: skip
"""What swanctl looks into; it complains where one is missing."""


def _host(name: str) -> str:
    try:
        return parse_as_id(name)
    except ParseError as problem:
        remedy = "Use --psk, or put a certificate of your own into x509/ and its key into private/ by hand"
        raise ConfigError("ipsec_identity", f"{name!r} is no host name, and our certificates name hosts", remedy) from problem


def psk_file(state: Path, pair: Pair) -> Path:
    """Return where the key of a pair lies, in both machines' state directories."""
    names = (quote(name, safe="@") for name in (pair.scscf, pair.server))  # of two pairs never the same
    return state / "ipsec" / f"{'+'.join(names)}.psk"


def _psk_secret(state: Path, pair: Pair) -> str:
    """Return the part of swanctl.conf with a pair's key, which is made if there is none. Raises StateError."""
    file = psk_file(state, pair)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            _write(file, base64.b64encode(SystemRandom().octets(PSK_OCTETS)).decode() + "\n")
        text = file.read_text("ascii").strip()
    except OSError as problem:
        raise StateError(str(file), f"cannot be used: {problem.strerror}", "Check the owner and the mode of its folder") from problem
    if not _PSK.fullmatch(text):
        raise StateError(str(file), f"is not {PSK_OCTETS} octets in Base64", "Copy it again from the other machine, or remove it on both")
    return f"""  ike-{_section(pair)} {{
    id-1 = "{pair.scscf}"
    id-2 = "{pair.server}"
    secret = 0s{text}
  }}
"""


def _section(pair: Pair) -> str:
    """Return the name of a pair's section, of each its own; a dot in it would begin a section within it."""
    return "isc-" + re.sub("[.:]", "-", f"{pair.scscf_address}-{pair.server_address}")


def _write(path: Path, text: str) -> None:
    """Write a file for nobody else's eyes, so that a crash leaves the old one or the new one."""
    beside = path.with_name(path.name + ".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
    beside.replace(path)


# ---- the files


def strongswan_conf(choices: Choices) -> str:
    """Return a whole strongswan.conf for a charon of its own."""
    userspace = """\
    # This kernel has no ESP: charon does it itself, between a TUN device (ipsec0) and UDP port 4500. What charon sends carries a
    # mark, so that it is not routed into the tunnel that it is.
    kernel-libipsec {
      load = yes
      allow_peer_ts = yes   # the protected addresses are those that IKE is spoken between
    }
    kernel-netlink {
      fwmark = !0x42
    }
    socket-default {
      fwmark = 0x42
    }
"""
    group = f"  group = {choices.group}   # the control socket belongs to it\n" if choices.group else ""
    # updown runs a command that whoever may use the control socket gives it, as root.
    absent = "bypass-lan connmark dhcp farp forecast ha lookip resolve stroke tnc-tnccs unity updown"
    off = "".join(f"    {name} {{\n      load = no\n    }}\n" for name in absent.split())
    return f"""# Written by `keyferry ipsec write`: settings of charon for SIP between S-CSCF and application server (ISC).
# For a charon of its own: STRONGSWAN_CONF=THIS-FILE charon-systemd. On a machine whose charon has other work, take over what stands here.
# Log levels 3 and 4 of `ike` and `lib` print keys. Leave them at 1.

charon-systemd {{
  load_modular = yes
{group}  # A peer that is gone is known to be so within 10 s (dpd_delay, then 1 + 1.4 + 2 + 2.7), not within three minutes.
  retransmit_timeout = 1.0
  retransmit_base = 1.4
  retransmit_tries = 3
  plugins {{
    include /etc/strongswan.d/charon/*.conf
    # `keyferry serve` asks here. Whoever can write to this socket can change every SA: leave it to root, and to the user of `keyferry`.
    vici {{
      socket = unix://{choices.vici}
    }}
{userspace if choices.esp == "userspace" else ""}    # Not wanted; bypass-lan would let packets to the local network out in clear.
{off}  }}
}}

swanctl {{
  socket = unix://{choices.vici}
}}
"""


def swanctl_conf(pairs: Sequence[Pair], choices: Choices, secrets: Sequence[str]) -> str:
    """Return a whole swanctl.conf."""
    discovery = [_discovery(pair, choices) for pair in pairs if choices.esp == "kernel" and ":" in pair.scscf_address]
    connections = "".join([*discovery, *(_connection(pair, choices) for pair in pairs)])
    kept = f"\nsecrets {{\n{''.join(secrets)}}}\n" if secrets else "\n# The private key is in private/, the CA in x509ca/.\n"
    return f"""# Written by `keyferry ipsec write` for the side of the {"S-CSCF" if choices.side == "scscf" else "application server"}.
# Zb/Za of TS 33.210, certificates of TS 33.310. Load it with: SWANCTL_DIR={{this folder}} swanctl --load-all --noprompt

connections {{
{connections}}}
{kept}"""


def _discovery(pair: Pair, choices: Choices) -> str:
    """Return the policies that let neighbour discovery between two IPv6 addresses past the kernel's SAs (RFC 4861; RFC 4301 §4.4.1.1)."""
    _, own, _, peer = pair.ends(choices.side)
    children = "".join(
        f"""      {_section(pair)}-nd-{kind} {{
        local_ts = {own}/128[ipv6-icmp/{kind << 8}]
        remote_ts = {peer}/128[ipv6-icmp/{kind << 8}]
        mode = pass
        start_action = trap
      }}
"""
        for kind in NEIGHBOURS
    )
    return f"""  {_section(pair)}-nd {{
    # Neighbour discovery, by its ICMPv6 type (in the upper octet), past the SA: the kernel would drop it, and find nobody to send ESP to.
    remote_addrs = 127.0.0.1        # never a peer's: there is no IKE_SA here
    children {{
{children}    }}
  }}
"""


def _connection(pair: Pair, choices: Choices) -> str:
    own, own_address, peer, peer_address = pair.ends(choices.side)
    with_certificates = choices.authentication == "certificate"
    auth = "pubkey" if with_certificates else "psk"
    ours = f"      certs = {own}.pem\n" if with_certificates else ""
    theirs = "      cacerts = keyferry-ca.pem\n" if with_certificates else ""
    kernel = choices.esp == "kernel"
    # Only one side begins: two that begin at once may end each other's SAs.
    start = "trap|start" if kernel and choices.side == "scscf" else "trap" if kernel else "start" if choices.side == "scscf" else "none"
    close = "start" if choices.side == "scscf" else "none"
    return f"""  {_section(pair)} {{
    version = 2                     # IKEv1 is not allowed any more (TS 33.210 §5.4.2)
    local_addrs = {own_address}
    remote_addrs = {peer_address}
    proposals = {IKE_PROPOSALS}
    encap = {"no" if kernel else "yes"}                     # UDP around ESP{"" if kernel else ": there is no other in user space"}
    mobike = no                     # the addresses are those that the drop rules name
    dpd_delay = 2s
    keyingtries = 0                 # for ever
    rekey_time = 4h
    local {{
      auth = {auth}
{ours}      id = "{own}"
    }}
    remote {{
      auth = {auth}
{theirs}      id = "{peer}"   # who else proves to be somebody of the same CA is refused
    }}
    children {{
      {pair.child} {{
        # Everything between the two addresses: no selector of local_ts, remote_ts is given, so they are the addresses themselves.
        mode = {"transport" if kernel else "tunnel"}{"" if kernel else "               # user space has no other"}
        esp_proposals = {ESP_PROPOSALS}
        rekey_time = 1h
        start_action = {start}
        close_action = {close}
        dpd_action = {"restart" if choices.side == "scscf" else "clear"}
      }}
    }}
  }}
"""
