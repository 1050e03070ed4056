# SPDX-License-Identifier: Apache-2.0
"""RFC 7616 §3.3, DESIGN §7: challenges composed from the key sources."""

from __future__ import annotations

import pytest

from asgi.doorkit import AS_ID, FakeKeys
from keyferry.asgi.exchange import Scope
from keyferry.asgi.offers import Offers
from keyferry.errors import ConfigError
from keyferry.protocol import digest
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims.key_record import Offer

FQDN = "xcap.home1.net"
GBA = f"3GPP-bootstrapping@{FQDN};3GPP-bootstrapping-uicc@{FQDN}"


class Phones(FakeKeys):
    """A source for phones."""

    realm = GBA
    mechanism = "static"

    def offer(self, as_id: AsId) -> Offer:
        return Offer(self.mechanism, self.realm, "3GPP-bootstrapping", handsets=True)


def make(*sources: FakeKeys, algorithms: tuple[str, ...] = ("SHA-256",), handsets: str = "token") -> Offers:
    return Offers(AS_ID, sources, algorithms=algorithms, qop=("auth", "auth-int"), nobody=Secret(b"n" * 32), handsets=handsets)


def shown(offers: Offers, *, handset: bool) -> list[tuple[str, str, tuple[str, ...]]]:
    headers = offers.challenges("n" * 40, handset=handset, stale=False)
    assert {name for name, _ in headers} <= {b"www-authenticate"}
    found = [digest.parse_challenge(value.decode()) for _, value in headers]
    return [(challenge.realm, challenge.algorithm, challenge.qop) for challenge in found]


def agent(*values: str) -> Scope:
    return {"headers": [(b"user-agent", value.encode()) for value in values]}


def test_the_strongest_algorithm_comes_first_whatever_the_order_of_the_settings() -> None:
    """DESIGN §7: MD5 only if configured, then second."""
    realm = f"IMS-AS-key@{FQDN}"
    assert shown(make(FakeKeys()), handset=False) == [(realm, "SHA-256", ("auth", "auth-int"))]
    offers = make(FakeKeys(), algorithms=("MD5", "SHA-256"))
    assert [algorithm for _, algorithm, _ in shown(offers, handset=False)] == ["SHA-256", "MD5"]


def test_a_phone_gets_one_challenge_and_others_none_of_its_kind() -> None:
    """HANDSETS H1, H2, H3, H7."""
    offers = make(FakeKeys(), Phones(), algorithms=("SHA-256", "MD5"))
    assert shown(offers, handset=True) == [(GBA, "MD5", ("auth",))]
    assert {realm for realm, _, _ in shown(offers, handset=False)} == {f"IMS-AS-key@{FQDN}"}
    assert offers.serves(handset=True)
    assert not make(FakeKeys()).serves(handset=True)


@pytest.mark.parametrize("text", ["3gpp-gba", "XCAP Client 3gpp-gba", "SAMSUNG/1.0 3GPP-GBA", "x 3gpp-gba-uicc", "a/1 3gpp-gba/2 (b)"])
def test_a_phone_says_that_it_is_one(text: str) -> None:
    """HANDSETS H14; TS 24.109 §5.2."""
    assert make(FakeKeys()).is_handset(agent(text))
    assert make(FakeKeys()).is_handset(agent("other", text))


@pytest.mark.parametrize("text", ["", "curl/8", "3gpp-gbax", "x3gpp-gba", "non-3gpp-gba", "3gpp gba"])
def test_others_do_not(text: str) -> None:
    """A token is whole."""
    assert not make(FakeKeys()).is_handset(agent(text))
    assert not make(FakeKeys()).is_handset({"headers": []})


def test_the_profile_is_overridden_per_door() -> None:
    """HANDSETS H14: 8 of 405 profiles do not announce it; and a door for phones alone needs no announcement."""
    assert make(FakeKeys(), Phones(), handsets="always").is_handset(agent())
    assert not make(FakeKeys(), Phones(), handsets="never").is_handset(agent("3gpp-gba"))
    assert make(Phones()).is_handset(agent())
    with pytest.raises(ConfigError):
        make(FakeKeys(), handsets="sometimes")


def test_either_realm_of_a_list_and_the_list_lead_to_the_source() -> None:
    """HANDSETS H8."""
    offers = make(FakeKeys(), Phones())
    for realm in (GBA, *GBA.split(";")):
        place = offers.of_realm(realm)
        assert place is not None
        assert place.offer.realm == GBA
    assert offers.of_realm("3GPP-bootstrapping@other") is None


def test_two_sources_cannot_have_one_realm() -> None:
    """Else it is chance whose key it is."""
    with pytest.raises(ConfigError, match="two sources"):
        make(FakeKeys(), FakeKeys())


@pytest.mark.parametrize(
    ("realm", "mechanism"), [("a b", "static"), ("a,b", "static"), ("a\tb", "static"), ("é", "static"), ("r", "ims-as-key")]
)
def test_a_realm_that_a_phone_cannot_read_is_refused(realm: str, mechanism: str) -> None:
    """HANDSETS H3, H7; a pushed key is never for phones."""
    source = Phones()
    source.realm, source.mechanism = realm, mechanism
    with pytest.raises(ConfigError, match="phones"):
        make(source)
