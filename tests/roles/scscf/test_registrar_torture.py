# SPDX-License-Identifier: Apache-2.0
"""RFC 4475: the torture messages that a registrar must understand, at the S-CSCF and through the P-CSCF."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyferry.protocol.digest import parse_challenge
from keyferry.protocol.sip.message import Request, Response
from roles.home import Home
from roles.manual import Manual


def bindings(answer: Response) -> list[str]:
    return [value.partition(";expires=")[0] for value in answer.all("Contact")]


@pytest.mark.parametrize(
    "contact",
    [
        "<sip:alice@192.0.2.1>;unknownparam",
        "<sip:alice@192.0.2.1;unknownparam>",
        "<sip:alice@192.0.2.1?Route=%3Csip:sip.home1.net%3E>",
        "<sip:%00@192.0.2.1>",
    ],
    ids=["3.3.12", "3.3.13", "3.3.14", "3.1.1.4"],
)
async def test_a_contact_comes_back_as_it_was_registered(home: Home, contact: str) -> None:
    """RFC 4475 §3.1.1.4, §3.3.12, §3.3.13, §3.3.14: a parameter stays where it was; an escaped header stays in the URI."""
    answer = await Manual(home).procedure(contact=contact)
    assert answer.status == 200
    assert bindings(answer) == [contact]


async def test_a_parameter_of_a_bare_contact_does_not_become_the_uris(home: Home) -> None:
    """RFC 4475 §3.3.12."""
    answer = await Manual(home).procedure(contact="sip:alice@192.0.2.1;unknownparam")
    assert answer.status == 200
    assert not any("unknownparam>" in value for value in answer.all("Contact"))


async def test_two_escaped_nulls_are_another_device_than_one(home: Home) -> None:
    """RFC 4475 §3.1.1.4: two distinct contacts; in one REGISTER this registrar takes one (conformance)."""
    manual = Manual(home)
    for contact in ("<sip:%00@192.0.2.1>", "<sip:%00%00@192.0.2.1>"):
        answer = await manual.procedure(contact=contact)
    assert sorted(bindings(answer)) == ["<sip:%00%00@192.0.2.1>", "<sip:%00@192.0.2.1>"]
    assert (await manual.send(contact="<sip:%00@192.0.2.1>, <sip:%00%00@192.0.2.1>")).status == 400


async def test_a_contact_with_headers_that_is_not_in_brackets_is_400(home: Home) -> None:
    """RFC 4475 §3.1.2.13."""
    assert (await Manual(home).send(contact="sip:alice@192.0.2.1?Route=%3Csip:sip.home1.net%3E")).status == 400


async def test_an_address_of_record_of_another_scheme_is_400(home: Home) -> None:
    """RFC 4475 §3.3.4."""
    assert (await Manual(home).send(To="isbn:2983792873")).status == 400
    assert (await Manual(home).procedure(From="<http://www.home1.net>;tag=3")).status == 200


async def test_an_unknown_extension_is_named_and_refused(home: Home) -> None:
    """RFC 4475 §3.3.5: Require concerns the registrar, each value of each header field."""
    answer = await Manual(home).send(Require="nothingSupportsThis, path, nothingSupportsThisEither")
    assert (answer.status, answer.get("Unsupported")) == (420, "nothingSupportsThis, nothingSupportsThisEither")
    assert (await Manual(home).send(Require="path, sec-agree")).status == 401


@pytest.mark.parametrize("uri", ["nobodyKnowsThisScheme:totallyopaquecontent", "soap.beep://192.0.2.103:3002"])
async def test_a_request_uri_of_another_scheme_is_416(home: Home, uri: str) -> None:
    """RFC 4475 §3.3.2, §3.3.3."""
    home.network.requests["X", "S"] = lambda request: replace(request, uri=uri)
    assert (await Manual(home).send()).status == 416


@pytest.mark.parametrize("hop", ["S", "I", "P"])
async def test_credentials_of_an_unknown_scheme_are_challenged_as_none(home: Home, hop: str) -> None:
    """RFC 4475 §3.3.7: by the registrar, and through the proxies before it."""
    first = await Manual(home).send(Authorization="NoOneKnowsThisScheme opaque-data=here")
    request = next(each.message for each in home.network.seen if each.receiver == "S")
    assert isinstance(request, Request)
    answer = await home.network.carry("X", request.without("Via").without("Path"), home.network.peer(hop))
    assert (first.status, answer.status) == (401, 401)
    assert parse_challenge(answer.get("WWW-Authenticate") or "").realm == "home1.net"


async def test_an_endpoint_takes_a_request_with_no_hops_left(home: Home) -> None:
    """RFC 4475 §3.3.11: the registrar forwards nothing."""
    home.network.requests["X", "S"] = lambda request: request.replacing("Max-Forwards", "0")
    assert (await Manual(home).send()).status == 401


async def test_extremes_of_time_are_refused_or_cut(home: Home) -> None:
    """RFC 4475 §3.1.2.4: an overlarge Expires is no number of seconds."""
    assert (await Manual(home).send(expires="10000000000000000000000000000000000000000000000000")).status == 400
    assert (await Manual(home).procedure(expires="4294967295")).status == 200
