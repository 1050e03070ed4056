# SPDX-License-Identifier: Apache-2.0
"""RFC 4825 §11."""

from __future__ import annotations

from keyferry.protocol import xmlsafe
from keyferry.protocol.xcap.errors import NAMESPACE, XcapConflict, build_xcap_error


def test_a_conflict_names_its_condition_and_a_phrase() -> None:
    """RFC 4825 §11.2; whatever the phrase holds, the document is well-formed."""
    conflict = XcapConflict("not-utf-8", 'Not <UTF-8> & "such".')
    assert conflict.status == 409
    root = xmlsafe.parse(build_xcap_error(conflict), what="error")
    assert root.tag == f"{{{NAMESPACE}}}xcap-error"
    (condition,) = list(root)
    assert (condition.tag, condition.get("phrase")) == (f"{{{NAMESPACE}}}not-utf-8", 'Not <UTF-8> & "such".')
