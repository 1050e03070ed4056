# SPDX-License-Identifier: Apache-2.0
"""TS 33.102 §6.3."""

from __future__ import annotations

import pytest

from keyferry.errors import LocalProtocolError
from keyferry.protocol.crypto.functions import F2345, check_inputs, check_rand
from keyferry.protocol.crypto.secret import Secret


def test_the_outputs_do_not_print() -> None:
    outputs = F2345(Secret(b"r" * 8), Secret(b"c" * 16), Secret(b"i" * 16), b"anonym")
    assert repr(outputs) == "F2345(res=Secret(8 octets), ck=Secret(16 octets), ik=Secret(16 octets))"


def test_inputs_of_the_right_length_pass() -> None:
    check_rand(bytes(16))
    check_inputs(bytes(16), bytes(6), bytes(2))


@pytest.mark.parametrize(("rand", "sqn", "amf"), [(15, 6, 2), (17, 6, 2), (16, 5, 2), (16, 7, 2), (16, 6, 1), (16, 6, 3)])
def test_inputs_of_another_length_are_refused(rand: int, sqn: int, amf: int) -> None:
    with pytest.raises(LocalProtocolError):
        check_inputs(bytes(rand), bytes(sqn), bytes(amf))


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_rand_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(LocalProtocolError):
        check_rand(bytes(length))
