# SPDX-License-Identifier: Apache-2.0
"""What a command of the UE says where nobody answers, or the network fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyferry.cli.ue_run import run
from keyferry.client.session import UeSession
from keyferry.errors import KeyferryError, RegistrationFailed, TransportError

UE = Path(__file__).resolve().parents[2] / "examples/ue.toml"


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (
            TransportError("udp:127.0.0.1:5060", "no answer in 32 s"),
            "no answer in 32 s: does it run (`keyferry serve`), and what is behind it",
        ),
        (TransportError("udp:127.0.0.1:5060", "refused"), "is ue.pcscf right?"),
        (TransportError("xcap.home1.net", "ConnectError"), "is its line in [hosts] right?"),
        (TransportError("xcap.home1.net", "CERTIFICATE_VERIFY_FAILED: has expired"), "has expired: `keyferry pki show` there"),
        (TransportError("proxy:127.0.0.1:8899", "in use; choose another port"), "proxy:127.0.0.1:8899: in use; choose another port"),
        (RegistrationFailed("answered 504", 504), "`keyferry failures --impi user1_private@home1.net` and /ready there"),
        (RegistrationFailed("answered 403", 403, remedy="compare K"), "answered 403. To do: compare K"),
    ],
)
def test_it_says_where_to_look(tmp_path: Path, raised: KeyferryError, says: str) -> None:
    async def work(_: UeSession) -> None:
        raise raised

    with pytest.raises(type(raised)) as caught:
        run(UE, tmp_path / "state", work, quiet=True, make=True)
    assert str(caught.value).endswith(says) or says in str(caught.value)
    assert ("keyferry serve" in str(caught.value)) == (
        isinstance(raised, TransportError) and "in use" not in says and "expired" not in says
    )
