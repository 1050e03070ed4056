# SPDX-License-Identifier: Apache-2.0
"""A key never prints, never pickles, never hashes."""

from __future__ import annotations

import copy
import dataclasses
import hmac
import pickle

import pytest

from keyferry.protocol.crypto.secret import Secret

KEY = bytes(range(32))


@dataclasses.dataclass
class Record:
    key: Secret


def test_no_way_of_printing_shows_the_octets() -> None:
    secret = Secret(KEY)
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r}", "%s" % secret, repr([secret]), repr(Record(secret))):  # noqa: UP031
        assert "Secret(32 octets)" in text
        assert KEY.hex() not in text
        assert repr(KEY)[2:12] not in text


def test_reveal_returns_the_octets() -> None:
    assert Secret(KEY).reveal() == KEY


def test_it_cannot_be_pickled_nor_copied_deeply() -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Secret(KEY))
    with pytest.raises(TypeError):
        copy.deepcopy(Secret(KEY))
    with pytest.raises(TypeError):
        dataclasses.asdict(Record(Secret(KEY)))


def test_it_cannot_be_hashed() -> None:
    with pytest.raises(TypeError):
        hash(Secret(KEY))


def test_it_has_no_dictionary_of_attributes() -> None:
    with pytest.raises(TypeError):
        vars(Secret(KEY))


def test_equality_compares_octets_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    genuine = hmac.compare_digest

    def recording(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return genuine(a, b)

    monkeypatch.setattr(hmac, "compare_digest", recording)
    assert Secret(KEY) == Secret(bytes(range(32)))
    assert Secret(KEY) != Secret(bytes(32))
    assert compared == [(KEY, KEY), (KEY, bytes(32))]


def test_a_secret_is_not_equal_to_its_octets() -> None:
    assert Secret(KEY) != KEY
    assert Secret(KEY) is not None


def test_the_length_is_public_and_a_fingerprint_is_short() -> None:
    assert len(Secret(KEY)) == 32
    assert Secret(KEY).fingerprint() == "630dcd2966c43366"
    assert Secret(KEY).fingerprint() != Secret(bytes(32)).fingerprint()
