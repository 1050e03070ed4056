# SPDX-License-Identifier: Apache-2.0
"""Write the configuration of a Kamailio that is the I-CSCF: its file, cdp's, the tables of S-CSCFs. It needs no script and no keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyferry.config import Config
from keyferry.errors import ConfigError
from keyferry.protocol.sip.uri import SipUri, parse_sip_uri
from keyferry.roles.icscf import ANSWER_WITHIN
from keyferry.wiring.kamailio_files import (
    as_owner,
    bracketed,
    checked_words,
    common_values,
    fill,
    find_modules,
    make_folder,
    trusted_peers,
    write_file,
)
from keyferry.wiring.services import server_name_of

FILES: Final = ("icscf.cfg", "icscf_cdp.xml", "README.icscf")
CAPABILITIES: Final = "icscf/s_cscf_capabilities"
_NEEDED: Final = ("cdp.so", "cdp_avp.so", "ims_icscf.so", "db_text.so", "htable.so")
_PACKAGES: Final = "apt install kamailio kamailio-ims-modules"


@dataclass(frozen=True, slots=True)
class WrittenIcscf:
    """What was written."""

    directory: Path
    hss: str
    scscfs: tuple[str, ...]
    trusts_loopback: bool  # whoever runs something on this machine is taken for a P-CSCF


def write_icscf(config: Config, directory: Path, *, modules: Path | None = None, log_stderror: bool = False) -> WrittenIcscf:
    """Write or rewrite the files of the I-CSCF in `directory`; capabilities and icscf-local.cfg that are there stay.

    Raises ConfigError, StateError.
    """
    directory = directory.absolute()
    found = find_icscf(modules)
    scscfs = scscfs_of(config)
    values = common_values(config, "icscf", directory, found, log_stderror=log_stderror) | _choice(config, scscfs)
    texts = {name: fill(name, values) for name in FILES} | _tables(config, scscfs)
    if (directory / CAPABILITIES).exists():
        del texts[CAPABILITIES]
    make_folder(directory, config.kamailio.user)
    with as_owner(directory):
        make_folder(directory / "icscf", config.kamailio.user)
        for name, text in texts.items():
            write_file(directory / name, text)
    local = any(each.is_loopback for each in trusted_peers(config, "icscf"))
    return WrittenIcscf(directory, f"{values['HSS']}:{values['HSS_PORT']}", scscfs, local)


def find_icscf(modules: Path | None) -> Path:
    """Find the modules of an I-CSCF. Raises ConfigError that says what to install."""
    return find_modules(modules, _NEEDED, _PACKAGES)


def scscfs_of(config: Config) -> tuple[str, ...]:
    """Return the SIP URIs of the S-CSCFs to choose from: those of this file, and those that its HSS offers. Raises ConfigError."""
    own = [server_name_of(scscf) for scscf in config.scscfs] if config.further_scscfs else [config.icscf.scscf]
    found = tuple(dict.fromkeys([*own, *config.hss.scscfs]))
    for uri in found:
        _checked(uri)
    return found


def _checked(text: str) -> SipUri:
    checked_words({"icscf.scscf": text})
    uri = parse_sip_uri(text)
    if uri.scheme != "sip" or (uri.parameter("transport") or "").lower() not in {"", "udp", "tcp"}:
        raise ConfigError("icscf.scscf", f"{text} asks for what this Kamailio has not: it speaks UDP and TCP", "Write sip:, without TLS")
    return uri


def _choice(config: Config, scscfs: tuple[str, ...]) -> dict[str, str]:
    """Return what of the script depends on the S-CSCFs."""
    several = len(scscfs) > 1
    hops = [hop for uri in dict.fromkeys(_checked(each).host for each in scscfs) for hop in _hop(config, uri)]
    return {
        "MOVES": str(int(several)),
        "PATIENCE": _milliseconds(min(config.icscf.patience, ANSWER_WITHIN) if several else ANSWER_WITHIN),
        "ANSWER_WITHIN": _milliseconds(ANSWER_WITHIN),
        "ANOTHER": "\n".join(f'  if ($sht(away=>{uri}) == $null) {{ $ru = "{uri}"; return 1; }}' for uri in scscfs),
        "HOPS": "\n".join(hops),
        "SCSCFS": ", ".join(scscfs),
    }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def at_host(config: Config, text: str) -> str:
    """Return the SIP URI of an S-CSCF, with its address of the hosts table, if it has one. Raises ConfigError."""
    uri = _checked(text)
    place = config.hosts.get(uri.host)
    if place is None:
        return text
    tcp = ";transport=tcp" if (uri.parameter("transport") or "").lower() == "tcp" else ""
    host, _, port = place.rpartition(":") if place.count(":") == 1 else (place, "", str(uri.port or ""))
    return f"sip:{bracketed(host)}{f':{port}' if port else ''}{tcp}"


def _hop(config: Config, name: str) -> list[str]:
    """Return the line for one host that is in the hosts table."""
    place = config.hosts.get(name)
    if place is None:
        return []
    host, _, port = place.rpartition(":") if place.count(":") == 1 else (place, "", "")
    checked_words({f"hosts.{name}": place})
    at = f'"sip:{bracketed(host)}:{port}"' if port else f'"sip:{bracketed(host)}:" + $(avp(kf_scscf){{uri.port}})'
    return [
        f'  if ($var(kf_host) == "{name}") {{ $du = {at}; }}',
        f'  if ($var(kf_host) == "{name}" && $(avp(kf_scscf){{uri.transport}}) == "tcp") {{ $du = $du + ";transport=tcp"; }}',
    ]


def _tables(config: Config, scscfs: tuple[str, ...]) -> dict[str, str]:
    """Return the tables of ims_icscf for db_text, whose fields are parted by colons."""
    rows = [f"{number}:{_checked(uri).host}:{_cell(uri)}\n" for number, uri in enumerate(scscfs, 1)]
    return {
        "icscf/s_cscf": "id(int) name(string) s_cscf_uri(string)\n" + "".join(rows),
        CAPABILITIES: "id(int) id_s_cscf(int) capability(int)\n",
        "icscf/nds_trusted_domains": f"id(int) trusted_domain(string)\n1:{config.network.home_domain}\n",
    }


def _cell(text: str) -> str:
    return text.replace(":", "\\:")
