# SPDX-License-Identifier: Apache-2.0
"""Two application servers of `keyferry serve` at one SIP URI: one listener, one push for each AS_ID, a key for each (DESIGN §6)."""

from __future__ import annotations

from pathlib import Path

import pytest

from system.serving import Lab, Served, keyferry, make_lab, serving, ue


def _edited(text: str) -> str:
    return text.replace('"sip:notes-as.home1.net:5091"', '"sip:xcap-as.home1.net:5090"').replace('"127.0.0.1:5091"', '"127.0.0.1:5090"')


@pytest.mark.parametrize("roles", [(), ("as",)])
def test_each_as_id_has_its_key_and_its_door(tmp_path: Path, roles: tuple[str, ...]) -> None:
    """In one process, and with the S-CSCF in another."""
    if roles:
        lab = make_lab(tmp_path, lambda text: _edited(text) + '\n[hosts]\n"xcap-as.home1.net" = "127.0.0.1:5090"\n')
        rest = [word for role in ("pcscf", "icscf", "scscf") for word in ("--role", role)]
        with serving(lab.serve, lab.state, "--role", "as", "--role", "admin") as served, serving(lab.serve, lab.state, *rest):
            _check(lab, served)
    else:
        lab = make_lab(tmp_path, _edited)
        with serving(lab.serve, lab.state) as served:
            _check(lab, served)


def _check(lab: Lab, served: Served) -> None:
    sip = [one["name"] for one in served.listen if one["role"] == "as" and one["proto"] == "udp"]
    assert sip == ["xcap-as.home1.net"]
    assert ue(lab, "register")["keys"]
    assert served.health()["keys"] == {"xcap.home1.net": 1, "notes.home1.net": 1}
    xcap, notes = f"https://xcap.home1.net:{lab.ports['8443']}/xcap-caps/global/index", f"https://notes.home1.net:{lab.ports['8444']}/"
    for url, says in ((xcap, "<auid>simservs.ngn.etsi.org</auid>"), (notes, "you have no note")):
        assert says in keyferry("ue", "get", "--config", lab.ue, "--state", lab.state, url).stdout
    ue(lab, "deregister")
    assert served.health()["keys"] == {"xcap.home1.net": 0, "notes.home1.net": 0}
