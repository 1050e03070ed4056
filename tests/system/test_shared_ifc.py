# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.2.1, annex B: an application server that no profile names, only a set of criteria that the S-CSCFs hold."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from system.serving import EVENT_LIMIT, Lab, make_lab, serving, ue, until
from system.staying import metric

SHARED = '\n[[shared_ifc]]\nid = 3\napplication_servers = ["notes.home1.net"]\n'


def profiles(lab: Lab) -> list[bytes]:
    """Return the user profiles that the S-CSCF has, as the HSS gave them."""
    with closing(sqlite3.connect(f"file:{lab.state / 'scscf.db'}?mode=ro", uri=True)) as connection:
        return [bytes(row[0]) for row in connection.execute("SELECT body FROM user_data")]


def test_an_as_of_a_shared_set_alone_gets_its_key_and_may_watch(tmp_path: Path) -> None:
    """TS 29.228 §6.1.2.1."""
    lab = make_lab(tmp_path, lambda text: text.replace('app = "notes" ', 'reg_event = true\napp = "notes" ') + SHARED)
    notes = f"https://notes.home1.net:{lab.ports['8444']}/"
    with serving(lab.serve, lab.state) as served:
        assert ue(lab, "register")["keys"]
        (profile,) = profiles(lab)
        assert b"<SharedIFCSetID>3</SharedIFCSetID>" in profile
        assert profile.count(b"<ApplicationServer>") == 1
        assert b"notes-as" not in profile
        assert served.health()["keys"] == {"xcap.home1.net": 1, "notes.home1.net": 1}
        note = tmp_path / "note.txt"
        note.write_text("milk", "utf-8")
        assert ue(lab, "put", notes, note)["ok"]
        name = 'keyferry_scscf_subscriptions_total{reason="as"}'
        assert until(lambda: metric(served, name), seconds=EVENT_LIMIT, what=name) == 1
        ue(lab, "deregister")
        assert served.health()["keys"] == {"xcap.home1.net": 0, "notes.home1.net": 0}

    # The operator moves the criterion back into the profiles: the next registration has it there.
    lab.serve.write_text(lab.serve.read_text("utf-8").partition("[[shared_ifc]]")[0])
    with serving(lab.serve, lab.state) as served:
        assert ue(lab, "register")["keys"]
        (profile,) = profiles(lab)
        assert b"notes-as" in profile
        assert b"SharedIFCSetID" not in profile
        assert served.health()["keys"] == {"xcap.home1.net": 1, "notes.home1.net": 1}
