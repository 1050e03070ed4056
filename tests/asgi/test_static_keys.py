# SPDX-License-Identifier: Apache-2.0
"""Keys written down for tests of phones."""

from __future__ import annotations

from pathlib import Path

import pytest

from asgi.doorkit import AS_ID
from keyferry.asgi.static_keys import StaticKeys, load_static_keys
from keyferry.errors import ConfigError

KEY = "00112233445566778899aabbccddeeff" * 2
GOOD = f"""
realm = "3GPP-bootstrapping@xcap.home1.net;3GPP-bootstrapping-uicc@xcap.home1.net"
[[keys]]
identifier = "abc+/=@bsf.home1.net"
key = "{KEY}"
impi = "001010000000001@home1.net"
impus = ["sip:alice@home1.net", "tel:+1-555-1234"]
"""


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    file = path / "keys.toml"
    file.write_text(text)
    file.chmod(mode)
    return file


async def test_a_key_is_found_by_its_identifier(tmp_path: Path) -> None:
    """ports.KeySource."""
    source = load_static_keys(write(tmp_path, GOOD))
    record = await source.lookup("abc+/=@bsf.home1.net", AS_ID)
    assert record is not None
    assert record == source.lookup_now("abc+/=@bsf.home1.net", AS_ID)
    assert record.impus == ("sip:alice@home1.net", "tel:+15551234")
    assert record.as_id == AS_ID
    for ua_id in (b"12345", b"54321"):
        assert source.protocol_key(record, ua_id).reveal() == bytes.fromhex(KEY)
    await source.used(record)
    assert await source.lookup("other", AS_ID) is None


def test_the_offer_is_for_phones() -> None:
    """HANDSETS H7: a realm that phones take for GBA."""
    assert StaticKeys([]).offer(AS_ID) == ("static", "3GPP-bootstrapping@xcap.home1.net", "3GPP-bootstrapping", True)
    assert StaticKeys([], realm="x").offer(AS_ID).realm == "x"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("keys = [", "not TOML"),
        ("realm = 1\n[[keys]]\n", "needs"),
        ("", "needs"),
        ("keys = []", "needs"),
        ("keys = [1]", "not a table"),
        (GOOD + "pin = 1", "unknown key 'pin'"),
        (GOOD.replace("realm", "relm"), "unknown key 'relm'"),
        (GOOD.replace("identifier", "impi"), "not TOML"),
        (GOOD + GOOD.partition("\n[[")[2].join(("[[", "")), "twice"),
        (GOOD.replace(KEY, "0011"), "fewer than 16"),
        (GOOD.replace(KEY, "zz"), "hexadecimal"),
        (GOOD.replace("@home1.net", ""), "IMPI|IMPU"),
        (GOOD.replace('["sip:alice@home1.net", "tel:+1-555-1234"]', "[]"), "needs"),
        (GOOD.replace('"001010000000001@home1.net"', "1"), "strings"),
    ],
)
def test_a_file_that_is_wrong_is_refused_and_no_key_is_shown(tmp_path: Path, text: str, problem: str) -> None:
    """What, where, what to do."""
    with pytest.raises(ConfigError, match=problem) as caught:
        load_static_keys(write(tmp_path, text))
    assert KEY not in str(caught.value)


def test_a_file_that_others_may_read_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """As all files with keys."""
    with pytest.raises(ConfigError, match="chmod 600"):
        load_static_keys(write(tmp_path, GOOD, 0o640))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_static_keys(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="over"):
        load_static_keys(write(tmp_path, "#" * 1_000_001))
