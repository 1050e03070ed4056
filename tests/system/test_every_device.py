# SPDX-License-Identifier: Apache-2.0
"""RFC 3261 §10.2.2, TS 24.229 §5.1.1.6: one device of a subscriber de-registers all of them; two phones, a real network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from system.serving import Lab, Served, in_clear, keyferry, make_lab, serving, ue

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "simservs.xml"
DOCUMENT = "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml"
IMPI = "user1_private@home1.net"


def second_phone(lab: Lab) -> Lab:
    """The same subscriber in another phone: its own instance and state."""
    file = lab.ue.with_name("second.toml")
    instance = 'instance = "urn:uuid:00000000-0000-4000-8000-000000000002"'
    file.write_text(lab.ue.read_text("utf-8").replace("[ue]", f"[ue]\n{instance}", 1), "utf-8")
    return Lab(lab.serve, file, lab.state.with_name("second"), lab.ports)


def registered(served: Served) -> int:
    status, body = served.admin(f"/registrations?impi={IMPI}")
    assert status == 200
    return len(json.loads(body)["registrations"])


@pytest.mark.parametrize("gm", ["required", "off"])
def test_one_phone_ends_both_and_neither_has_a_key_that_opens_a_door(tmp_path: Path, gm: str) -> None:
    lab = make_lab(tmp_path, edit_ue=in_clear if gm == "off" else str)
    with serving(lab.serve, lab.state) as served:
        phones = [lab, second_phone(lab)]
        ca = ["--state", str(phones[1].state)]
        for phone in phones:
            assert ue(phone, "register")["keys"]
            (phone.state / "ca.pem").write_bytes(served.ca.read_bytes())
        assert ue(phones[0], "put", DOCUMENT, EXAMPLE)["ok"]
        assert ue(phones[1], "get", DOCUMENT)["ok"]
        assert registered(served) == 2
        assert not ue(phones[0], "deregister", "--all")["registered"]
        assert registered(served) == 0
        refused = keyferry("ue", "get", "--config", phones[1].ue, *ca, "--json", DOCUMENT)
        assert (refused.returncode, json.loads(refused.stdout)["status"]) == (1, 401)
        assert ue(phones[1], "register")["keys"]
        assert ue(phones[1], "get", DOCUMENT)["ok"]
        assert registered(served) == 1
