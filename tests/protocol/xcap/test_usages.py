# SPDX-License-Identifier: Apache-2.0
"""RFC 4825 §5, §12.1; RFC 4826; TS 24.623 §5.3; HANDSETS X1 to X4."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import ParseError
from keyferry.protocol import xmlsafe
from keyferry.protocol.xcap.errors import XcapConflict
from keyferry.protocol.xcap.usages import (
    CAPS_NAMESPACE,
    MAX_DOCUMENT,
    RESOURCE_LISTS,
    SIMSERVS,
    USAGES,
    capabilities,
    default_simservs,
    validate,
)

NS = f"{{{SIMSERVS.namespace}}}"
CP = "{urn:ietf:params:xml:ns:common-policy}"


def test_the_first_document_has_every_service_on_and_every_rule_there() -> None:
    """HANDSETS X2, X3: else phones refuse to change anything."""
    validate(SIMSERVS, default_simservs())
    root = xmlsafe.parse(default_simservs(), what="document")
    services = {service.tag.removeprefix(NS): service for service in root}
    assert all(service.get("active") == "true" for service in services.values())

    def rules(service: str) -> list[str | None]:
        (ruleset,) = xmlsafe.children(services[service], f"{CP}ruleset")
        found = xmlsafe.children(ruleset, f"{CP}rule")
        for rule in found:
            (conditions,) = xmlsafe.children(rule, f"{CP}conditions")
            assert len(xmlsafe.children(conditions, f"{NS}rule-deactivated")) == 1
        return [rule.get("id") for rule in found]

    assert rules("communication-diversion") == [
        "call-diversion-unconditional",
        "call-diversion-busy",
        "call-diversion-no-reply",
        "call-diversion-not-reachable",
        "call-diversion-not-logged-in",
    ]
    assert rules("incoming-communication-barring") == ["call-barring-all-incoming", "call-barring-incoming-in-roaming"]
    assert len(rules("outgoing-communication-barring")) == 3


def test_prefixes_are_those_that_phones_compare_as_text() -> None:
    """HANDSETS X4."""
    assert b"<cp:ruleset>" in default_simservs()
    assert b"<simservs xmlns=" in default_simservs()


@pytest.mark.parametrize(
    ("body", "condition"),
    [
        (b"", "not-well-formed"),
        (b"<simservs", "not-well-formed"),
        (b"<simservs/>", "schema-validation-error"),
        (b'<simservs xmlns="urn:other"/>', "schema-validation-error"),
        (b'<x xmlns="http://uri.etsi.org/ngn/params/xml/simservs/xcap"/>', "schema-validation-error"),
        (
            b'<!DOCTYPE x [<!ENTITY a "b">]><simservs>&a;</simservs>',
            "not-well-formed",
        ),
        (b"<simservs>\xff</simservs>", "not-utf-8"),
        (b'<?xml version="1.0" encoding="ISO-8859-1"?><simservs/>', "not-utf-8"),
        ("<simservs/>".encode("utf-16"), "not-utf-8"),
        ("<simservs/>".encode("utf-16-be"), "not-well-formed"),
    ],
)
def test_what_cannot_be_a_document_is_a_conflict(body: bytes, condition: str) -> None:
    """RFC 4825 §8.2.5, §11."""
    with pytest.raises(XcapConflict) as caught:
        validate(SIMSERVS, body)
    assert caught.value.condition == condition
    assert len(caught.value.phrase) < 60  # HANDSETS X14


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf<?xml version="1.0" encoding="UTF-8"?><resource-lists xmlns="urn:ietf:params:xml:ns:resource-lists"/>',
        b"<?xml version='1.0' encoding='us-ascii'?><a:resource-lists xmlns:a='urn:ietf:params:xml:ns:resource-lists'>x</a:resource-lists>",
    ],
)
def test_a_document_of_the_right_kind_is_taken_as_it_is(body: bytes) -> None:
    """HANDSETS X13: what phones send is not judged."""
    validate(RESOURCE_LISTS, body)


@pytest.mark.parametrize("body", [b"<a>" * 40, b"<simservs>" + b"x" * MAX_DOCUMENT])
def test_a_document_that_is_too_much_is_too_large(body: bytes) -> None:
    """RFC 9110 §15.5.14."""
    with pytest.raises(ParseError) as caught:
        validate(SIMSERVS, body)
    assert caught.value.status == 413


@given(st.binary(max_size=200) | st.text("<>/ax:='\"&;#!?[] ", max_size=200).map(str.encode))
def test_any_octets_are_a_document_or_refused(body: bytes) -> None:
    """STYLE: parser property."""
    with contextlib.suppress(XcapConflict, ParseError):
        validate(SIMSERVS, body)


@pytest.mark.parametrize("piece", [b"<a>", b"<?xml ", b"<?xml encoding=", b" ", b"&#65;", b'a="', b"<!--", b"]]>"])
def test_hostile_documents_take_no_time(piece: bytes) -> None:
    """Linear."""
    with costs_under(0.5), pytest.raises((XcapConflict, ParseError)):
        validate(SIMSERVS, (piece * MAX_DOCUMENT)[:MAX_DOCUMENT])


def test_the_server_says_what_it_serves() -> None:
    """RFC 4825 §12.1."""
    root = xmlsafe.parse(capabilities(USAGES), what="document")
    assert root.tag == f"{{{CAPS_NAMESPACE}}}xcap-caps"
    auids, _, namespaces = list(root)
    assert [xmlsafe.text(auid, "auid") for auid in auids] == ["xcap-caps", "simservs.ngn.etsi.org", "resource-lists"]
    assert len(list(namespaces)) == 3


def test_nobody_needs_to_see_the_default_document_in_a_log() -> None:
    """Readable repr."""
    assert "rule-deactivated" not in repr(SIMSERVS)
