# SPDX-License-Identifier: Apache-2.0
"""The targets that `make fuzz-door` runs for minutes, for seconds: nothing gets in, nothing raises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi.doorkit import AS_ID
from fuzz.door_targets import SEEDS, TARGET, TARGETS, holder

WORDS = st.sampled_from(
    [b"Digest ", b"username=", b'"', b"\\", b",", b"=", b"nonce=", b"nc=00000001", b"uri=", b"\r\n", b" ", b":", b"Host: ",
     AS_ID.encode(), b"GET /notes HTTP/1.1\r\n", b"Content-Length: 3", b"Transfer-Encoding: chunked", b"\r\n\r\n", b"0\r\n", b"\xff"]
)  # fmt: skip
PIECES = st.lists(st.one_of(WORDS, st.binary(max_size=8)), max_size=40).map(b"".join)


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_fuzzer_begins_with_is_withstood(target: str) -> None:
    for seed in SEEDS[target]:
        TARGETS[target](seed)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=250)
@given(data=PIECES)
def test_any_octets_are_withstood(target: str, data: bytes) -> None:
    TARGETS[target](data)


@given(data=st.binary(min_size=20, max_size=200))
def test_whoever_has_the_key_gets_no_more_than_the_key_gives(data: bytes) -> None:
    holder(data)


def test_the_targets_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A door that compares no uri lets a proof for one path through to another, and the target says so."""
    monkeypatch.setattr("keyferry.asgi.door._check_uri", lambda *_: None)
    octets = bytes([0, 0, 0, 3, 0, 0, 0, 0])  # a known nonce; no text; the third uri
    with pytest.raises(AssertionError, match=f"admitted to {TARGET}"):
        for choice in range(256):
            holder(octets[:3] + bytes([choice]) + bytes([choice]) + octets[4:])


def test_the_proxys_target_can_fail_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A front that lets every name of a field through hands CGI a second identity."""
    monkeypatch.setattr("keyferry.asgi.proxy.fields._goes_on", lambda name: True)
    with pytest.raises(AssertionError, match="another identity"):
        TARGETS["proxied"](SEEDS["proxied"][0])
