# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.3.1.2; TS 29.229 §6.2; RFC 6733 §7.1: what a UE is answered."""

from __future__ import annotations

import pytest

from keyferry.errors import CxError
from keyferry.roles.cx_status import status_of


@pytest.mark.parametrize(
    ("code", "status"),
    [(5001, 403), (5002, 403), (5003, 403), (5004, 403), (5006, 403), (5012, 500), (3001, 500), (3002, 504), (3004, 504)],
)
def test_a_refusal_is_told_from_an_hss_in_trouble(code: int, status: int) -> None:
    assert status_of(CxError(code, "X")) == status
