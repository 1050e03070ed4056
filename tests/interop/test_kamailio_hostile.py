# SPDX-License-Identifier: Apache-2.0
"""A real Kamailio whose own 401s look otherwise than ims_auth's today, and one that logs more: what docs/kamailio.md says of both."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from interop.kamailio_kit import IMPI, REALM, Network, RawUe, Run, network, nonce_of, run_of
from keyferry.protocol.digest import aka_nonce
from keyferry.protocol.ims.marker import Marker, build_marker
from system.key_search import KeySearch

pytestmark = pytest.mark.interop
NONCE = aka_nonce(bytes(range(64, 80)), bytes(range(80, 96)), build_marker(Marker(6, access_keys=True, as_keys=True, rspauth=True)))
RUN = run_of(NONCE)
C, I = RUN.ck.reveal().hex(), RUN.ik.reveal().hex()  # noqa: E741 - IK
HEAD = f'WWW-Authenticate: Digest realm="{REALM}", nonce="{NONCE}", algorithm=AKAv1-MD5, qop="auth"'


def _says_what_is_wanted(text: str) -> str:
    """Let Kamailio answer each REGISTER with a 401 of the header rows that X-Rows names; everything else of the configuration stays."""
    asked = '    ims_www_challenge("MAR", "$td", "AKAv1-MD5");\n    exit;\n  }\n  # from here on'
    assert text.count(asked) == 1
    rows = (
        '    append_to_reply("$(hdr(X-Rows){s.decode.base64})");\n    send_reply("401", "Unauthorized");\n    exit;\n  }\n  # from here on'
    )
    return text.replace(asked, rows)


@pytest.fixture(name="odd", scope="module")
def odd_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A Kamailio that sends such 401s."""
    with network(tmp_path_factory.mktemp("odd"), change=_says_what_is_wanted) as running:
        yield running


def _answer_to(odd: Network, rows: str) -> str:
    empty = f'Digest username="{IMPI}", realm="{REALM}", nonce="", uri="sip:{REALM}", response=""'
    with closing(RawUe(odd.ports["6060"])) as ue:
        return ue.send(ue.request(f"{empty}\r\nX-Rows: {base64.b64encode((rows + chr(13) + chr(10)).encode()).decode()}"))


def _raw(answer: str) -> list[str]:
    return KeySearch(RUN.secrets()).in_octets("401", answer.lower().encode())


@pytest.mark.parametrize(
    "keys",
    [
        f'ck="{C}", ik="{I}"',
        f'ik="{I}", ck="{C}"',
        f'CK="{C.upper()}",IK="{I.upper()}"',
        f'Ck="{C}" ,\tiK="{I}"',
        f"ik={I}, ck={C}",
        f'ck="{C}",\r\n ik="{I}"',
        f'opaque="x",\r\n\tik="{I}",\r\n  stale=false, ck={C}',
    ],
)
@pytest.mark.parametrize("name", ["WWW-Authenticate", "www-AUTHENTICATE"])
def test_ck_and_ik_in_any_order_case_and_folding_leave_masked(odd: Network, keys: str, name: str) -> None:
    answer = _answer_to(odd, f"{HEAD}, {keys}".replace("WWW-Authenticate", name))
    assert answer.startswith("SIP/2.0 401"), answer
    assert all(key in answer for key in RUN.masked)
    assert _raw(answer) == []


@pytest.mark.parametrize(
    "rows",
    [
        HEAD,
        f'{HEAD}, ck="{C}"',
        f'{HEAD}, ck="{C}", ik="{I}", ck="{C}"',
        f'{HEAD}, ck="{C}", ik="{I}", x="{I}"',
        f'{HEAD}, ck="{C}" ik="{I}"',
        f'{HEAD}, ck="{C}", ik="{I}"\r\nX-Debug: {C.upper()}',
        f'{HEAD}, ck="{C}", ik="{I}"\r\nWWW-Authenticate: Digest realm="x", nonce="y", ck="{C}"',
    ],
)  # fmt: skip
def test_what_cannot_wholly_be_replaced_leaves_as_500(odd: Network, rows: str) -> None:
    answer = _answer_to(odd, rows)
    assert answer.startswith("SIP/2.0 500"), answer
    assert _raw(answer) == []


def _logging(tmp_path: Path, *, quiet_modules: bool) -> tuple[bytes, list[Run]]:
    """Return Kamailio's log at debug=3 of a registration and of a wrong answer, and both runs."""

    def change(text: str) -> str:
        text, changed = re.subn(r"^debug=1$", "debug=3", text, flags=re.MULTILINE)
        assert changed == 1
        return text if quiet_modules else re.sub(r'^modparam\("debugger", "mod_level", .*$', "", text, flags=re.MULTILINE)

    with network(tmp_path, change=change) as running, closing(RawUe(running.ports["6060"])) as ue:
        runs = []
        for status in ("200", "403"):
            run = run_of(nonce_of(ue.challenged()))
            time.sleep(0.1)  # ims_auth stores the vector
            answer = ue.answer(run)
            wrong = re.sub(r'response="(.)', lambda found: f'response="{"0" if found[1] != "0" else "1"}', answer)
            assert ue.send(answer if status == "200" else wrong).startswith(f"SIP/2.0 {status}")
            runs.append(run)
        return running.kamailio_log.read_bytes(), runs


def test_at_debug_3_ims_auth_gives_away_what_the_docs_say(tmp_path: Path) -> None:
    """And so it is a search that finds what is there."""
    log, runs = _logging(tmp_path, quiet_modules=False)
    assert KeySearch([found for run in runs for found in run.secrets()]).in_octets("log", log) == ["log: CK", "log: HA1", "log: XRES"]


def test_at_debug_3_with_the_modules_levels_as_written_nothing_is_found(tmp_path: Path) -> None:
    log, runs = _logging(tmp_path, quiet_modules=True)
    assert len(log) > 100_000
    assert KeySearch([found for run in runs for found in [*run.secrets(), *run.access()]]).in_octets("log", log) == []
