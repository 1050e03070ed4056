# SPDX-License-Identifier: Apache-2.0
"""SUBSCRIBE and NOTIFY (RFC 6665 §3, §8; for the reg package RFC 3680 §4 and TS 24.229 §5.1.1.3, §5.2.3, §5.4.2.1, Release 17)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

from keyferry.errors import ParseError
from keyferry.protocol.ims.reginfo import REGINFO_BODY
from keyferry.protocol.ims.subscription import State, Subscription, check_order
from keyferry.protocol.sip.grammar import TOKEN, build_parameters, is_token, parameter_of, scan_parameters
from keyferry.protocol.sip.headers import NameAddr, parse_cseq, parse_expires, parse_name_addr, parse_name_addr_list, split_list
from keyferry.protocol.sip.message import Message, Request, Response, make_response
from keyferry.protocol.sip.uri import parse_sip_uri

REG_EVENT = "reg"
DEFAULT_EXPIRES = 3761
"""Seconds, where SUBSCRIBE states none (RFC 3680 §4.4)."""
MAX_ROUTE = 10
"""Record-Route values; an IMS path adds three."""
MAX_ASSERTED = 2
"""Values of P-Asserted-Identity: a SIP and a tel URI (RFC 3325 §9.1)."""
MAX_ACCEPT = 32
"""Media types in Accept."""

_TOKEN = re.compile(TOKEN)
_MEDIA_TYPE = re.compile(rf"({TOKEN})/({TOKEN})")


class SubscribeView(NamedTuple):
    """What a notifier reads in a SUBSCRIBE."""

    resource: str  # the Request-URI
    event: str
    event_id: str | None
    expires: int  # seconds asked for; 0 ends, or fetches once
    accept: tuple[str, ...]  # lower case, without parameters; empty where the header field is absent
    contact: str  # where NOTIFYs go
    record_route: tuple[str, ...]  # top first
    call_id: str
    from_uri: str
    from_tag: str
    to_uri: str
    to_tag: str  # "" outside a dialog
    cseq: int
    asserted: tuple[str, ...]


class NotifyView(NamedTuple):
    """What a subscriber reads in a NOTIFY."""

    event: str
    event_id: str | None
    state: SubscriptionState
    media_type: str | None
    body: bytes
    contact: str | None
    record_route: tuple[str, ...]
    call_id: str
    from_tag: str
    to_tag: str
    cseq: int


class SubscriptionState(NamedTuple):
    """Subscription-State (RFC 6665 §8.2.3)."""

    state: str  # active, pending, terminated, or an extension, which is to be taken for pending (§4.1.2.4)
    expires: int | None = None  # seconds
    reason: str | None = None  # with terminated
    retry_after: int | None = None  # seconds, with terminated


# ---- reading


def parse_subscribe(request: Request) -> SubscribeView:
    """Read a SUBSCRIBE that `check_request` has passed, for whatever package. Raises ParseError."""
    event, event_id = parse_event(_single(request, "Event"))
    expires = request.get("Expires")
    contact = _contact(request)
    if contact is None:
        raise ParseError("Contact", "not exactly one in a SUBSCRIBE")
    sender, receiver = _tagged(request, "From"), parse_name_addr(request.get("To") or "")
    return SubscribeView(
        resource=request.uri, event=event, event_id=event_id, expires=DEFAULT_EXPIRES if expires is None else parse_expires(expires),
        accept=_accept(request), contact=contact, record_route=_routes(request.all("Record-Route")), call_id=request.get("Call-ID") or "",
        from_uri=sender.uri, from_tag=sender.parameter("tag") or "", to_uri=receiver.uri, to_tag=receiver.parameter("tag") or "",
        cseq=parse_cseq(request.get("CSeq") or "").number, asserted=_asserted(request),
    )  # fmt: skip


def parse_notify(request: Request) -> NotifyView:
    """Read a NOTIFY that `check_request` has passed, for whatever package. Raises ParseError."""
    event, event_id = parse_event(_single(request, "Event"))
    content_type = request.get("Content-Type")
    return NotifyView(
        event=event, event_id=event_id, state=parse_subscription_state(_single(request, "Subscription-State")),
        media_type=None if content_type is None else _media_type(content_type), body=request.body, contact=_contact(request),
        record_route=_routes(request.all("Record-Route")), call_id=request.get("Call-ID") or "",
        from_tag=_tagged(request, "From").parameter("tag") or "", to_tag=_tagged(request, "To").parameter("tag") or "",
        cseq=parse_cseq(request.get("CSeq") or "").number,
    )  # fmt: skip


def parse_event(text: str) -> tuple[str, str | None]:
    """Read Event: the package and its `id`; both have case (RFC 6665 §8.2.1). Raises ParseError."""
    found = _TOKEN.match(text)
    if found is None:
        raise ParseError("Event", "no event package")
    parameters, end = scan_parameters(text, found.end(), "Event")
    if end != len(text):
        raise ParseError("Event", "something follows the package and its parameters")
    event_id = parameter_of(parameters, "id")
    if event_id is not None and not is_token(event_id):  # it is sent back
        raise ParseError("Event", "an id that is no token")
    return found.group(), event_id


def parse_subscription_state(text: str) -> SubscriptionState:
    """Read Subscription-State. Raises ParseError."""
    found = _TOKEN.match(text)
    if found is None:
        raise ParseError("Subscription-State", "no state")
    parameters, end = scan_parameters(text, found.end(), "Subscription-State")
    if end != len(text):
        raise ParseError("Subscription-State", "something follows the state and its parameters")
    expires, retry_after = parameter_of(parameters, "expires"), parameter_of(parameters, "retry-after")
    reason = parameter_of(parameters, "reason")
    return SubscriptionState(
        state=found.group().lower(),
        expires=None if expires is None else parse_expires(expires),
        reason=None if reason is None else reason.lower(),
        retry_after=None if retry_after is None else parse_expires(retry_after),
    )


def build_subscription_state(value: SubscriptionState) -> str:
    """Write Subscription-State: the reverse of `parse_subscription_state`."""
    parameters = (("reason", value.reason), ("expires", value.expires), ("retry-after", value.retry_after))
    return value.state + build_parameters(tuple((name, str(each)) for name, each in parameters if each is not None))


def _single(request: Request, name: str) -> str:
    values = request.all(name)
    if len(values) != 1:
        raise ParseError(name, "not exactly one")
    return values[0]


def _tagged(request: Request, name: str) -> NameAddr:
    address = parse_name_addr(request.get(name) or "")
    if not is_token(address.parameter("tag") or ""):
        raise ParseError(name, "has no tag, or one that is no token")
    return address


def _contact(request: Message) -> str | None:
    values = request.all("Contact")
    if not values:
        return None
    addresses = parse_name_addr_list(values[0])
    if len(values) > 1 or len(addresses) > 1:
        raise ParseError("Contact", "more than one")
    parse_sip_uri(addresses[0].uri)
    return addresses[0].uri


def _routes(rows: list[str]) -> tuple[str, ...]:
    found = [item for row in rows for item in split_list(row)]
    if len(found) > MAX_ROUTE:
        raise ParseError("Record-Route", f"more than {MAX_ROUTE} values")
    for item in found:
        parse_sip_uri(parse_name_addr(item).uri)
    return tuple(found)


def _asserted(request: Request) -> tuple[str, ...]:
    found = [address.uri for row in request.all("P-Asserted-Identity") for address in parse_name_addr_list(row)]
    if len(found) > MAX_ASSERTED:
        raise ParseError("P-Asserted-Identity", f"more than {MAX_ASSERTED} values")
    return tuple(found)


def _accept(request: Request) -> tuple[str, ...]:
    found = [item for row in request.all("Accept") for item in split_list(row)]
    if len(found) > MAX_ACCEPT:
        raise ParseError("Accept", f"more than {MAX_ACCEPT} values")
    return tuple([_media_type(item) for item in found])


def _media_type(text: str) -> str:
    found = _MEDIA_TYPE.match(text)
    if found is None:
        raise ParseError("media type", "not of the form type/subtype")
    return found.group().lower()


# ---- dialogs


def accept_subscription(view: SubscribeView, *, local_tag: str, expires_at: float) -> Subscription:
    """Return the notifier's side of a new subscription; its dialog is as RFC 3261 §12.1.1 makes it."""
    return Subscription(
        state=State.ACTIVE, call_id=view.call_id, local_uri=view.to_uri, local_tag=local_tag, remote_uri=view.from_uri,
        remote_tag=view.from_tag, remote_target=view.contact, route_set=view.record_route, cseq=0, remote_cseq=view.cseq,
        event_id=view.event_id, expires_at=expires_at, version=-1,
    )  # fmt: skip


def refreshed_by(subscription: Subscription, view: SubscribeView, *, expires_at: float) -> Subscription:
    """Return the notifier's side after a SUBSCRIBE in the dialog: a new lifetime and perhaps a new Contact.

    Raises RemoteProtocolError 500 for one that was overtaken.
    """
    check_order(subscription, view.cseq)
    return replace(subscription, remote_target=view.contact, remote_cseq=view.cseq, expires_at=expires_at)


def accepted_by(subscription: Subscription, response: Response, *, now: float, asked: int) -> Subscription:
    """Return the subscriber's side after a 2xx; the dialog comes from it unless a NOTIFY was faster (RFC 6665 §4.1.2.1).

    `asked` is in seconds; the notifier may have granted less. Raises ParseError.
    """
    expires = response.get("Expires")
    granted = min(asked, parse_expires(expires)) if expires is not None else asked
    subscription = replace(subscription, expires_at=now + granted)
    tag = parse_name_addr(response.get("To") or "").parameter("tag") or ""
    if not is_token(tag) or subscription.remote_tag not in {"", tag}:
        return subscription
    target = _contact(response) or subscription.remote_target
    if subscription.remote_tag:
        return replace(subscription, remote_target=target)
    route_set = tuple(reversed(_routes(response.all("Record-Route"))))  # RFC 3261 §12.1.2
    return replace(subscription, remote_tag=tag, remote_target=target, route_set=route_set)


def noticed_by(subscription: Subscription, view: NotifyView, *, now: float) -> Subscription:
    """Return the subscriber's side after a NOTIFY, all but its state and version; the first one makes the dialog (RFC 6665 §4.4.1)."""
    expires = view.state.expires
    expires_at = subscription.expires_at if expires is None else now + expires
    target = view.contact or subscription.remote_target
    found = replace(subscription, remote_target=target, remote_cseq=view.cseq, expires_at=expires_at)
    return found if subscription.remote_tag else replace(found, remote_tag=view.from_tag, route_set=view.record_route)


# ---- writing


def build_subscribe(subscription: Subscription, *, contact: str, expires: int, identity: tuple[str, str] | None = None) -> Request:
    """Return the SUBSCRIBE to the reg package with the subscription's CSeq, first or in the dialog; `expires` in seconds.

    `identity` is a header field: P-Preferred-Identity of a UE, P-Asserted-Identity of a P-CSCF or AS.
    """
    headers = [
        *_dialog_headers(subscription, "SUBSCRIBE"),
        *((identity,) if identity is not None else ()),
        ("Contact", f"<{contact}>"),
        ("Event", _event(subscription)),
        ("Accept", REGINFO_BODY),
        ("Expires", str(expires)),
    ]
    return Request("SUBSCRIBE", subscription.remote_target, tuple(headers))


def build_notify(subscription: Subscription, *, contact: str, state: SubscriptionState, body: bytes | None) -> Request:
    """Return the NOTIFY with the subscription's CSeq, `body` being a reginfo document (TS 24.229 §5.4.2.1.2)."""
    headers = [
        *_dialog_headers(subscription, "NOTIFY"),
        ("Contact", f"<{contact}>"),
        ("Event", _event(subscription)),
        ("Subscription-State", build_subscription_state(state)),
        *((("Content-Type", REGINFO_BODY),) if body is not None else ()),
    ]
    return Request("NOTIFY", subscription.remote_target, tuple(headers), body or b"")


def build_accepted(request: Request, *, local_tag: str, contact: str, expires: int) -> Response:
    """Return the 200 to a SUBSCRIBE, first or in the dialog; `expires` in seconds (RFC 6665 §4.2.1.1)."""
    headers = [
        *(("Record-Route", row) for row in request.all("Record-Route")),
        ("Contact", f"<{contact}>"),
        ("Expires", str(expires)),
    ]
    return make_response(request, 200, headers=tuple(headers), to_tag=local_tag)


def _dialog_headers(subscription: Subscription, method: str) -> list[tuple[str, str]]:
    tag = f";tag={subscription.remote_tag}" if subscription.remote_tag else ""
    return [
        *(("Route", route) for route in subscription.route_set),
        ("Max-Forwards", "70"),
        ("From", f"<{subscription.local_uri}>;tag={subscription.local_tag}"),
        ("To", f"<{subscription.remote_uri}>{tag}"),
        ("Call-ID", subscription.call_id),
        ("CSeq", f"{subscription.cseq} {method}"),
    ]


def _event(subscription: Subscription) -> str:
    return REG_EVENT if subscription.event_id is None else f"{REG_EVENT};id={subscription.event_id}"
