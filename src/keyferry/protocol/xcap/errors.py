# SPDX-License-Identifier: Apache-2.0
"""The detailed conflict report (RFC 4825 §11)."""

from __future__ import annotations

from typing import Literal, TypeAlias
from xml.sax.saxutils import quoteattr

from keyferry.errors import RemoteProtocolError

MIME = "application/xcap-error+xml"
NAMESPACE = "urn:ietf:params:xml:ns:xcap-error"

Condition: TypeAlias = Literal[
    "not-well-formed",
    "not-utf-8",
    "no-parent",
    "schema-validation-error",
    "constraint-failure",
]
"""The error elements that an operation on a whole document can meet (RFC 4825 §11.2)."""


class XcapConflict(RemoteProtocolError):
    """Report that the document cannot be stored (409); phones show `phrase` to their user, so it is short and plain."""

    def __init__(self, condition: Condition, phrase: str) -> None:
        super().__init__(phrase, 409)
        self.condition: Condition = condition
        self.phrase = phrase


def build_xcap_error(conflict: XcapConflict) -> bytes:
    """Return the body of a 409 (RFC 4825 §11.1)."""
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<xcap-error xmlns="{NAMESPACE}"><{conflict.condition} phrase={quoteattr(conflict.phrase)}/></xcap-error>\n'
    )
    return text.encode("utf-8")
