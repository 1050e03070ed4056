# SPDX-License-Identifier: Apache-2.0
"""DESIGN §5, S4: a key that follows from a view is found, one that does not is not."""

from __future__ import annotations

import pytest

from keyferry.lab.attacks.closure import View, World, closure
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi
from keyferry.protocol.ims.keys import (
    UA_TLS13_PSK,
    access_keys,
    application_master_key,
    as_key,
    digest_password,
    first_nonce,
    key_id,
    ua_key,
)

WORLD = World((Impi("alice@home1.net"), Impi("bob@home1.net")), (AsId("xcap.home1.net"), AsId("notes.home1.net")), ("home1.net",))
CK, IK, RAND = bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 48))
K_M = application_master_key(Secret(CK), Secret(IK), RAND, WORLD.impis[0])
K_AS = as_key(K_M, WORLD.as_ids[0]).reveal()


def _view(*octets: bytes) -> View:
    view = View("test", rands={RAND})
    view.add(RAND)
    for one in octets:
        view.add(one)
    return view


def test_the_key_follows_from_raw_ck_and_ik() -> None:
    """S3 is what S4 stands on."""
    assert K_AS in closure(_view(CK, IK), WORLD)


def test_the_key_follows_from_ck_and_ik_of_which_each_is_held_by_another() -> None:
    """S4: alone or together."""
    assert K_AS not in closure(_view(CK), WORLD)
    assert K_AS in closure(_view(CK) | _view(IK), WORLD)


def test_the_key_does_not_follow_from_the_masked_keys_nor_from_another_as_key() -> None:
    """S4."""
    pair = access_keys(Secret(CK), Secret(IK), RAND, WORLD.impis[0])
    other = as_key(K_M, WORLD.as_ids[1]).reveal()
    assert K_AS not in closure(_view(pair.ck.reveal(), pair.ik.reveal(), other), WORLD, depth=1)


def test_hexadecimal_and_base64_parameters_are_read() -> None:
    """The view of a P-CSCF that got raw keys."""
    view = _view()
    view.add_header(f'Digest realm="home1.net", ck="{CK.hex()}", ik="{IK.hex()}"')
    assert K_AS in closure(view, WORLD)


def test_every_key_of_the_table_follows_from_ck_and_ik() -> None:
    """DESIGN §3: the whole chain, to what goes over HTTP."""
    k_ua = ua_key(Secret(K_AS))
    tls = ua_key(Secret(K_AS), UA_TLS13_PSK)
    last = {first_nonce(k_ua).encode(), digest_password(k_ua).reveal(), key_id(Secret(K_AS), "home1.net").encode(), tls.reveal()}
    assert last <= closure(_view(CK, IK), WORLD)
    assert last <= closure(_view(K_AS), WORLD)
    assert not last & closure(_view(CK), WORLD)
    only_keys = closure(_view(CK, IK), WORLD, keys_only=True)
    assert {K_AS, k_ua.reveal(), K_M.reveal()} <= only_keys < closure(_view(CK, IK), WORLD)


def test_a_closure_is_closed() -> None:
    """What the table yields from any of its values is in it: nothing new comes of taking the results for a view."""
    keys = [K_M.reveal(), K_AS]
    once = closure(_view(*keys), WORLD)
    for octets in (one for one in keys if len(one) == 32):
        assert closure(_view(octets), WORLD) <= once


def test_a_result_that_is_taken_for_another_key_needs_a_depth() -> None:
    """CK' || IK' as CK || IK of another run."""
    pair = access_keys(Secret(CK), Secret(IK), RAND, WORLD.impis[0])
    twice = application_master_key(pair.ck, pair.ik, RAND, WORLD.impis[1]).reveal()
    assert twice not in closure(_view(CK, IK), WORLD)
    assert twice in closure(_view(CK, IK), WORLD, depth=2)


def test_a_view_with_too_many_values_is_refused() -> None:
    """Bounds: pairs grow with the square."""
    with pytest.raises(OverflowError):
        closure(_view(*(bytes((number,)) * 16 for number in range(100))), WORLD)
