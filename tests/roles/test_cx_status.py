# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.3.1.2; TS 29.229 §6.2; RFC 6733 §7.1: what a UE is answered."""

from __future__ import annotations

import pytest

from keyferry.errors import CxError
from keyferry.roles.cx_status import status_of


@pytest.mark.parametrize(
    ("code", "name", "status"),
    [
        (5001, "DIAMETER_ERROR_USER_UNKNOWN", 403),
        (5002, "DIAMETER_ERROR_IDENTITIES_DONT_MATCH", 403),
        (5003, "DIAMETER_ERROR_IDENTITY_NOT_REGISTERED", 403),
        (5004, "DIAMETER_ERROR_ROAMING_NOT_ALLOWED", 403),
        (5006, "DIAMETER_ERROR_AUTH_SCHEME_NOT_SUPPORTED", 403),
        (5008, "DIAMETER_ERROR_TOO_MUCH_DATA", 500),
        (5012, "DIAMETER_UNABLE_TO_COMPLY", 500),
        (3001, "DIAMETER_COMMAND_UNSUPPORTED", 500),
        (3002, "DIAMETER_UNABLE_TO_DELIVER", 504),
        (3004, "DIAMETER_TOO_BUSY", 504),
        (5001, "DIAMETER_AVP_UNSUPPORTED", 500),
        (5003, "DIAMETER_AUTHORIZATION_REJECTED", 500),
        (5006, "DIAMETER_RESOURCES_EXCEEDED", 500),
    ],
)
def test_a_refusal_is_told_from_an_hss_in_trouble(code: int, name: str, status: int) -> None:
    """TS 29.229 §6.2 and RFC 6733 §7.1 number their errors alike: the name says whose it is."""
    assert status_of(CxError(code, name)) == status
