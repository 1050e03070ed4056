# SPDX-License-Identifier: Apache-2.0
"""Write the configuration of a Kamailio that is the P-CSCF of UEs without protection of Gm, for REGISTER alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyferry.config import Config, split_address
from keyferry.errors import ConfigError
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.wiring.kamailio_files import as_owner, bracketed, checked_words, common_values, fill, find_modules, make_folder, write_file

FILES: Final = ("pcscf.cfg", "README.pcscf")
_NEEDED: Final = ("tmx.so", "textops.so", "textopsx.so", "maxfwd.so", "siputils.so", "corex.so", "debugger.so")
_PACKAGES: Final = "apt install kamailio"


@dataclass(frozen=True, slots=True)
class WrittenPcscf:
    """What was written."""

    directory: Path
    icscf: str  # where REGISTERs go


def write_pcscf(config: Config, directory: Path, *, modules: Path | None = None, log_stderror: bool = False) -> WrittenPcscf:
    """Write or rewrite the files of the P-CSCF in `directory`; pcscf-local.cfg stays. Raises ConfigError, StateError."""
    directory = directory.absolute()
    found = find_modules(modules, _NEEDED, _PACKAGES)
    if config.network.gm == "required":
        remedy = 'Set network.gm = "off" there, or use ours: keyferry serve --role pcscf'
        raise ConfigError("network.gm", "is required, and this P-CSCF has no security associations", remedy)
    port = split_address(config.pcscf.listen, "pcscf.listen")[1]
    own = checked_words({"NAME_PORT": f"{config.pcscf.name}:{port}", "ICSCF": icscf_of(config)})
    values = common_values(config, "pcscf", directory, found, log_stderror=log_stderror) | own
    make_folder(directory, config.kamailio.user)
    with as_owner(directory):
        for name in FILES:
            write_file(directory / name, fill(name, values))
    return WrittenPcscf(directory, own["ICSCF"])


def icscf_of(config: Config) -> str:
    """Return the URI to send to: the I-CSCF's, with its address of the hosts table, if it has one. Raises ConfigError."""
    checked_words({"pcscf.icscf": config.pcscf.icscf})
    uri = parse_sip_uri(config.pcscf.icscf)
    transport = (uri.parameter("transport") or "").lower()
    if uri.scheme != "sip" or transport not in {"", "udp", "tcp"}:
        raise ConfigError(
            "pcscf.icscf", f"{config.pcscf.icscf} asks for what this Kamailio has not: UDP and TCP it has", "Write sip:, without TLS"
        )
    place = config.hosts.get(uri.host, uri.host)
    host, _, port = place.rpartition(":") if place.count(":") == 1 else (place, "", "")
    tcp = ";transport=tcp" if transport == "tcp" else ""
    return f"sip:{bracketed(host.strip('[]'))}:{port or uri.port or 5060}{tcp}"
