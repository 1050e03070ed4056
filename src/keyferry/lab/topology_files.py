# SPDX-License-Identifier: Apache-2.0
"""The files of a lab: a configuration and a state directory for each part, with no key and no certificate that it does not need.

The CA's key stays in `authority/`. A part has ca.pem and certificates of its own names; K and OPc are in the HSS's file and the UE's, and
the transport key of the ISC seal is in two states: it is exported from one and imported into the other, as between two machines.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from keyferry.errors import StateError
from keyferry.lab.topology import AS_ID, AS_SIP, DOOR, HOME, IMPI, IMPU, PARTS, Part, Plan
from keyferry.ports import RandomSource
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_as_id
from keyferry.transports.pki import Pki
from keyferry.wiring.administration import export_isc_keys, import_isc_keys, open_pki

CERTIFICATES: Final = {
    "hss": (f"hss.{HOME}",),
    "as": (AS_SIP, AS_ID),
    "scscf": (f"scscf1.{HOME}",),
    "icscf": (f"icscf.{HOME}",),
    "pcscf": (),
}
"""The names of which each part has a certificate in its role."""
SIMSERVS: Final = """<?xml version="1.0" encoding="UTF-8"?>
<simservs xmlns="http://uri.etsi.org/ngn/params/xml/simservs/xcap">
  <originating-identity-presentation active="true"/>
  <communication-waiting active="true"/>
</simservs>
"""
HTTPS: Final = 8443
ISC_CHILD: Final = "isc-" + AS_SIP.replace(".", "-")
"""The CHILD_SA of ISC, as it is called where the ServerName is a host name."""


class Card(NamedTuple):
    """The keys of the lab's one SIM."""

    k: Secret
    opc: Secret


class LabFiles:
    """Where everything of one lab lies."""

    def __init__(self, root: Path) -> None:
        """Take the lab's directory."""
        self.root = root
        self.record = root / "lab.json"
        self.ue = root / "ue.toml"
        self.document = root / "simservs.xml"

    def config(self, name: str) -> Path:
        """Return a part's configuration."""
        return self.root / f"{name}.toml"

    def state(self, name: str) -> Path:
        """Return a part's state directory."""
        return self.root / "state" / name

    def log(self, name: str) -> Path:
        """Return a part's log."""
        return self.root / "log" / f"{name}.log"

    def vici(self, side: str) -> Path:
        """Return the control socket of the charon of a side of ISC."""
        return self.root / f"{side}.vici"

    def said(self, name: str) -> Path:
        """Return what a part has said on its standard output: that it is ready."""
        return self.root / "log" / f"{name}.ready"


def write_files(files: LabFiles, plan: Plan, random: RandomSource) -> None:
    """Write configurations, certificates, keys and the document. Raises StateError."""
    card = Card(Secret(random.octets(16)), Secret(random.octets(16)))
    try:
        for folder in ("state", "log"):
            (files.root / folder).mkdir(mode=0o700)
        authority = open_pki(files.root / "authority")
        for part in PARTS:
            write_private(files.config(part.name), render(files, part, plan, card))
            _hand_out(authority, part, files.state(part.name))
        _carry_transport_key(files)
        if plan.isc == "ipsec":
            write_private(files.config("isc"), render_isc(plan))
        write_private(files.ue, render_ue(plan, card, authority.ca_file))
        write_private(files.document, SIMSERVS)
    except OSError as problem:
        raise StateError(str(files.root), f"cannot be written: {problem.strerror}", "Check the disk and the directory's owner") from problem


def _hand_out(authority: Pki, part: Part, state: Path) -> None:
    """Give a part the CA's certificate and its own, as `keyferry pki issue` and a copy would on another machine."""
    folder = open_pki(state).ca_file.parent / "pki"
    folder.mkdir(mode=0o700)
    for name in CERTIFICATES[part.name]:
        made = authority.ensure(name, part.name)
        write_private(folder / made.certificate.name, made.certificate.read_text("ascii"))
        write_private(folder / made.key.name, made.key.read_text("ascii"))
    if CERTIFICATES[part.name]:
        shutil.copyfile(authority.ca_file, state / "ca.pem")


def _carry_transport_key(files: LabFiles) -> None:
    carried = files.root / "isc.keys"
    export_isc_keys(files.state("scscf"), carried, f"scscf1.{HOME}", parse_as_id(AS_ID))
    import_isc_keys(files.state("as"), carried)
    carried.unlink()


def render(files: LabFiles, part: Part, plan: Plan, card: Card) -> str:
    """Return the configuration of a part: what it is, whom it trusts, and where the others are."""
    head = f"# {part.host} of the lab {plan.id}, in the namespace {plan.namespace(part.side)}. Written by `keyferry lab up`.\n\n"
    return head + "\n".join(
        [
            _network(part),
            _OWN[part.name](plan),
            *_shared(files, part, plan, card),
            *_beside_kamailio(files, part, plan),
            _admin(part),
            _hosts(),
        ]
    )


def render_ue(plan: Plan, card: Card, ca: Path) -> str:
    """Return the configuration of the UE."""
    pcscf = plan.part("pcscf")
    return f"""# The UE of the lab {plan.id}, in the namespace {plan.namespace("ue")}; its keys are real.

[ue]
impi = "{IMPI}"
impu = "{IMPU}"
{_keys(card)}home_domain = "{HOME}"
pcscf = "{pcscf.address}:5060"
gm = "required"
pcscf_gm = "{pcscf.address}:14500"
require_keys = true
xcap_root = "https://{AS_ID}:{HTTPS}/"
ca = "{quoted(str(ca))}"

[hosts]
"{AS_ID}" = "{DOOR.address}"
"""


def _network(part: Part) -> str:
    gm = 'gm = "required"\n' if part.name in {"pcscf", "scscf"} else ""  # whose S-CSCF takes the P-CSCF's word for it
    return f'[network]\nhome_domain = "{HOME}"\n{gm}'


def _pcscf(plan: Plan) -> str:
    own = plan.part("pcscf")
    return f"""[pcscf]
name = "{own.host}"
listen = "{own.address}:5060"
gm_listen = "{own.address}:14500"
icscf = "sip:icscf.{HOME}:5062"
"""


def _icscf(plan: Plan) -> str:
    own = plan.part("icscf")
    return f"""[icscf]
name = "{own.host}"
listen = "{own.address}:5062"
scscf = "sip:scscf1.{HOME}:6060"
trusted_peers = {_trusted(plan)}
"""


def _scscf(plan: Plan) -> str:
    own = plan.part("scscf")
    return f"""[scscf]
name = "{own.host}"
listen = "{own.address}:6060"
trusted_peers = {_trusted(plan)}
"""


def _hss(plan: Plan) -> str:
    own = plan.part("hss")
    return f"""[hss]
name = "{own.host}"
listen_diameters = "{own.address}:5658"
peers = ["scscf1.{HOME}", "icscf.{HOME}"]
{_clear_cx(plan)}"""


def _clear_cx(plan: Plan) -> str:
    """Return what an HSS needs for Kamailio, whose cdp has no TLS: both are in one namespace, and nothing of it is on a link."""
    if not plan.kamailios:
        return ""
    marker = f'marker_for = ["scscf1.{HOME}"]\n' if plan.kamailio else ""
    return f'listen_diameter = "{plan.part("hss").address}:3868"\nnetworks = ["198.18.20.0/24"]\n{marker}'


def _beside_kamailio(files: LabFiles, part: Part, plan: Plan) -> list[str]:
    """Return what the HSS and Kamailio, of which `scscf.toml` and `icscf.toml` are then the models, know of each other."""
    if plan.kamailio_icscf and part.name == "icscf":
        return [f'[hss]\nname = "{plan.part("hss").host}"\n{_clear_cx(plan)}']
    if not plan.kamailio or part.name not in {"hss", "scscf"}:
        return []
    sections = [f'[kamailio]\nuser = "root"\nrspauth_socket = "{quoted(str(files.root / "rspauth"))}"\n']
    if part.name == "scscf":
        sections.append(f'[hss]\nname = "{plan.part("hss").host}"\n{_clear_cx(plan)}')
    else:
        own = plan.part("scscf")
        sections.append(f'[scscf]\nname = "{own.host}"\nlisten = "{own.address}:6060"\ntrusted_peers = {_trusted(plan)}\n')
    return sections


def _as(plan: Plan) -> str:
    del plan
    return f'[scscf]\nname = "scscf1.{HOME}"   # who may push\n'


_OWN: Final = {"pcscf": _pcscf, "icscf": _icscf, "scscf": _scscf, "hss": _hss, "as": _as}


def _trusted(plan: Plan) -> str:
    """Return the functions before and beside the I- and S-CSCF; over TCP on one machine a function comes from the address it calls."""
    functions = [plan.part(name).address for name in ("pcscf", "icscf", "scscf")]
    return "[" + ", ".join(f'"{address}"' for address in functions) + "]"


def _shared(files: LabFiles, part: Part, plan: Plan, card: Card) -> list[str]:
    """Return the sections that several parts have."""
    sections = []
    if part.name in {"as", "scscf", "hss"}:
        sections.append(_server(part, plan))
    if part.name == "as" or (part.name == "scscf" and not plan.kamailio):
        sections += [f'[ipsec]\nvici = "{quoted(str(files.vici(part.name)))}"\n'] if plan.isc == "ipsec" else []
    if part.name == "hss":
        release = "release = 6\n" if plan.kamailio else ""
        sections.append(f'[[subscribers]]\nimpi = "{IMPI}"\nimpus = ["{IMPU}"]\n{_keys(card)}{release}')
    else:
        asks = "" if part.name in {"scscf", "icscf"} else "   # it asks nothing: no HSS is started in this process"
        sections.append(f'[cx]\npeers = ["aaas://hss.{HOME}:5658"]{asks}\n')
    return sections


def render_isc(plan: Plan) -> str:
    """Return a configuration that says between which addresses ISC is to be protected by IPsec."""
    scscf = plan.part("scscf")
    server = _server(plan.part("as"), replace(plan, isc="ipsec", kamailio=False))
    return f'[scscf]\nname = "{scscf.host}"\nlisten = "{scscf.address}:6060"\ntrusted_peers = {_trusted(plan)}\n\n{server}\n{_hosts()}'


def _server(part: Part, plan: Plan) -> str:
    """Return the application server as it is known to those who push, who have it in their criteria, and to itself."""
    address = plan.part("as").address
    if plan.kamailio:  # it checks nothing before it sends: the drop rules of IPsec keep everything else in
        isc = f'sip_uri = "sip:{address}:5090;transport=tcp"\nlisten_sip = "{address}:5090"\n'
        # The AS, which does check, takes nothing that did not come through IPsec.
        isc += (
            f'protection = "ipsec"\nipsec_child = "{ISC_CHILD}"\nipsec_identity = "{AS_SIP}"\n'
            if part.name == "as"
            else 'protection = "loopback"\n'
        )
    elif plan.isc == "ipsec":
        isc = f'sip_uri = "sip:{AS_SIP}:5090"\nprotection = "ipsec"\nlisten_sip = "{address}:5090"\n'
    else:
        isc = f'sip_uri = "sips:{AS_SIP}:5061"\nprotection = "tls"\nlisten_sips = "{address}:5061"\n'
    note = "" if part.name == "as" else "   # in the process of the AS"
    return f"""[[application_servers]]
as_id = "{AS_ID}"
{isc}listen_https = "{DOOR.address}:{HTTPS}"{note}
app = "xcap"
"""


def _admin(part: Part) -> str:
    return f'[admin]\nlisten = "127.0.0.1:{part.admin}"\n'


def _hosts() -> str:
    return "[hosts]\n" + "".join(f'"{part.host}" = "{part.address}"\n' for part in PARTS)


def _keys(card: Card) -> str:
    return f'k = "{card.k.reveal().hex()}"\nopc = "{card.opc.reveal().hex()}"\n'


def quoted(text: str) -> str:
    """Return what TOML takes between quotation marks. Raises StateError."""
    if not text.isprintable():
        raise StateError(repr(text), "cannot be written down", "Choose another directory")
    return text.replace("\\", "\\\\").replace('"', '\\"')


def write_private(file: Path, text: str) -> None:
    """Write a file that this user alone may read, as a whole or not at all. Raises OSError."""
    new = file.with_name(f"{file.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(text)
    new.replace(file)
