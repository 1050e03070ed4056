# SPDX-License-Identifier: Apache-2.0
"""Two S-CSCFs, each a process of its own: TS 24.229 §5.3.1.2, §5.3.1.3; TS 29.228 §6.1.1; DESIGN §11."""

from __future__ import annotations

import http.client
import json
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from system.serving import Lab, Served, free_port, keyferry, make_lab, serving, ue

USERS = 8
NAMES = ("scscf1.home1.net", "scscf2.home1.net")
DOCUMENT = "simservs.ngn.etsi.org/users/sip:crowd{}@home1.net/simservs.xml"


def crowded_lab(folder: Path) -> Lab:
    """The example's network with a second S-CSCF and some users more; each function finds the others by the hosts table."""
    port = free_port()

    def edit(text: str) -> str:
        text += f'\n[[further_scscfs]]\nname = "scscf2.home1.net"\nlisten = "127.0.0.1:{port}"\n'
        for number in range(USERS):
            text += (
                f'\n[[subscribers]]\nimpi = "crowd{number}@home1.net"\nimpus = ["sip:crowd{number}@home1.net"]\n'
                f'k = "{number:032x}"\nopc = "{"ab" * 16}"\n'
            )
        hosts = {"scscf1.home1.net": "6060", "scscf2.home1.net": str(port), "xcap-as.home1.net": "5090", "notes-as.home1.net": "5091"}
        lines = "".join(f'"{name}" = "127.0.0.1:{port}"\n' for name, port in hosts.items())
        return f"{text}\n[hosts]\n{lines}".replace("[icscf]", "[icscf]\npatience = 1.0")

    return make_lab(folder, edit)


class Crowd:
    """The users' phones."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        text = lab.ue.read_text()
        self.labs = []
        for number in range(USERS):
            file = lab.ue.with_name(f"ue{number}.toml")
            mine = text.replace("user1_private@", f"crowd{number}@").replace("user1_public1@", f"crowd{number}@")
            mine = mine.replace("465b5ce8b199b49faa5f0a2ee238a6bc", f"{number:032x}").replace("cd63cb71954a9f4e48a5994e37a02baf", "ab" * 16)
            file.write_text(mine)
            self.labs.append(Lab(lab.serve, file, lab.state, lab.ports))

    def register(self, number: int) -> None:
        shown = ue(self.labs[number], "register")
        assert shown["keys"], shown["no_keys_because"]

    def opens_the_door(self, number: int) -> bool:
        return bool(ue(self.labs[number], "get", DOCUMENT.format(number))["status"] == 200)


def registrations(served: Served, number: int) -> list[dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port("admin"), timeout=60)
    try:
        connection.request("GET", f"/registrations?impi=crowd{number}@home1.net")
        found: list[dict[str, Any]] = json.loads(connection.getresponse().read())["registrations"]
        return found
    finally:
        connection.close()


def at(lab: Lab, name: str) -> set[str]:
    """Return who is registered at an S-CSCF, as its database says."""
    file = lab.state / ("scscf.db" if name == NAMES[0] else f"scscf-{name}.db")
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return {str(row[0]) for row in connection.execute("SELECT impi FROM registration")}


def spoil(lab: Lab, impi: str) -> None:
    """Change what is sealed of a user's registration, wherever it is."""
    for file in lab.state.glob("scscf*.db"):
        with closing(sqlite3.connect(file, timeout=60)) as connection, connection:
            connection.execute("UPDATE registration SET cseq = cseq + 1 WHERE impi = ?", (impi,))


def test_users_are_spread_stick_and_move_when_their_s_cscf_dies(tmp_path: Path) -> None:
    """A killed S-CSCF's users register at the other, with keys that open the door."""
    lab = crowded_lab(tmp_path)
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(serving(lab.serve, lab.state, "--role", "scscf", "--scscf", name)) for name in NAMES
        }  # fmt: skip
        roles = [word for role in ("pcscf", "icscf", "as", "admin") for word in ("--role", role)]
        stack.enter_context(serving(lab.serve, lab.state, *roles))
        crowd = Crowd(lab)
        for number in range(USERS):
            crowd.register(number)
        homes = {name: at(lab, name) for name in NAMES}
        assert sorted(impi for members in homes.values() for impi in members) == [f"crowd{number}@home1.net" for number in range(USERS)]
        assert all(homes.values()), homes  # by chance all on one side: 1 in 128, and the names here are fixed

        for number in range(USERS):
            crowd.register(number)
        assert {name: at(lab, name) for name in NAMES} == homes

        processes[NAMES[1]].kill()
        moved = [number for number in range(USERS) if f"crowd{number}@home1.net" in homes[NAMES[1]]]
        for number in moved:
            crowd.register(number)
            assert crowd.opens_the_door(number)
        assert at(lab, NAMES[0]) == {f"crowd{number}@home1.net" for number in range(USERS)}
        ue(crowd.labs[moved[0]], "deregister")
        assert f"crowd{moved[0]}@home1.net" not in at(lab, NAMES[0])


def test_one_process_plays_both_and_its_operator_sees_both(tmp_path: Path) -> None:
    lab = crowded_lab(tmp_path)
    with serving(lab.serve, lab.state) as served:
        crowd = Crowd(lab)
        for number in range(3):
            crowd.register(number)
        servers = {registrations(served, number)[0]["server"].split(":")[1] for number in range(3)}
        assert servers <= set(NAMES)
        assert served.health()["registrations"] == 3
        admin = ("--admin", f"127.0.0.1:{served.port('admin')}")
        listed: list[dict[str, Any]] = []
        after: list[str] = []
        for _ in range(2):
            page = json.loads(keyferry("registrations", *admin, "--limit", "2", *after, "--json").stdout)
            listed += page["registrations"]
            after = ["--after", str(page["next"])]
        assert page["next"] is None
        assert [one["impi"] for one in listed] == [f"crowd{number}@home1.net" for number in range(3)]
        assert {one["server"].split(":")[1] for one in listed} == servers
        shown = keyferry("registrations", *admin, "--limit", "2").stdout
        assert all(part in shown for part in ("crowd0@home1.net", "crowd1@home1.net", "yes", "more: --after crowd1@home1.net"))
        assert "crowd2" not in shown
        assert "nobody is registered" in keyferry("registrations", *admin, "--after", "z@home1.net").stdout
        one = json.loads(keyferry("registrations", *admin, "--impi", "crowd2@home1.net", "--json").stdout)
        assert (len(one["registrations"]), one["challenges"]) == (1, 0)
        spoil(lab, "crowd1@home1.net")
        shown = keyferry("registrations", *admin).stdout
        assert "CANNOT BE READ: crowd1@home1.net" in shown
        assert all(f"crowd{number}@home1.net" in shown for number in (0, 2))
        assert keyferry("registrations", *admin, "--impi", "crowd2@home1.net", "--after", "crowd1@home1.net").returncode == 2
        assert [one["name"] for one in served.listen if one["role"] == "scscf" and one["proto"] == "udp"] == list(NAMES)
