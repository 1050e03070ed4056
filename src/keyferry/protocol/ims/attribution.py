# SPDX-License-Identifier: Apache-2.0
"""Whose message is it? IMPIs of SIP messages that do not name one (TS 24.229 §5.1.1, §5.4.1.7, Release 17)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

from keyferry.errors import KeyferryError
from keyferry.protocol.digest import parse_credentials
from keyferry.protocol.identity import parse_impu
from keyferry.protocol.ims.notes import is_third_party
from keyferry.protocol.sip.headers import parse_name_addr, parse_name_addr_list, top_via
from keyferry.protocol.sip.message import Message, Request

MAX_REMEMBERED: Final = 20_000
"""Names of each kind that are remembered; the one longest unused goes first."""


class Traits(NamedTuple):
    """What a message has that may tell whose it is; "" for what it has not."""

    username: str  # of Authorization: the IMPI, a claim of whoever sent it
    impu: str  # canonical; To of a REGISTER, From of another request
    other: str  # the other side of another request
    call_id: str
    branch: str  # of the top Via, with the method
    associated: tuple[str, ...]  # P-Associated-URI of a 200
    third_party: bool
    request: bool = True


class Attribution:
    """Learn from REGISTERs with credentials which IMPU and which Call-ID is whose, and tell of each message the IMPI."""

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._limit = limit
        self._impus: OrderedDict[str, str] = OrderedDict()
        self._calls: OrderedDict[str, str] = OrderedDict()
        self._branches: OrderedDict[str, str] = OrderedDict()

    def learn(self, impi: str, impus: Iterable[str]) -> None:
        """Note that these public identities are of this IMPI."""
        for impu in impus:
            self._note(self._impus, canonical(impu), impi)

    def of(self, message: Message) -> str | None:
        """Return the IMPI of a message, None if nothing known so far tells it; learn from what it holds."""
        return self.of_traits(traits_of(message))

    def of_traits(self, traits: Traits) -> str | None:
        """Return the IMPI of a message with these traits, None if nothing known so far tells it; learn from them."""
        owner = traits.username or self.known(traits)
        if owner is None:
            return None
        self._note(self._calls, traits.call_id, owner)
        self._note(self._branches, traits.branch, owner)
        if traits.username:
            self._note(self._impus, traits.impu, owner)
        for impu in traits.associated:
            self._note(self._impus, impu, owner)
        return owner

    def known(self, traits: Traits) -> str | None:
        """Return the IMPI by transaction, Call-ID or public identity, the surest first; learn nothing."""
        return (
            (None if traits.request else self._branches.get(traits.branch))
            or self._calls.get(traits.call_id)
            or self._impus.get(traits.impu)
            or self._impus.get(traits.other)
        )

    def _note(self, table: OrderedDict[str, str], name: str, owner: str) -> None:
        if name:
            table[name] = owner
            table.move_to_end(name)
            if len(table) > self._limit:
                table.popitem(last=False)


def traits_of(message: Message) -> Traits:
    """Return what a message has that may tell whose it is; what cannot be read counts as absent."""
    request = isinstance(message, Request)
    cseq = (message.get("CSeq") or "").rpartition(" ")[2]
    registers = cseq == "REGISTER"
    source, target = _address(message.get("From")), _address(message.get("To"))
    return Traits(
        username=_username(message) if request else "",
        impu=target if registers else source,
        other="" if registers else target,
        call_id=message.get("Call-ID") or "",
        branch=f"{branch} {cseq}" if (branch := _branch(message)) else "",
        associated=() if request else _associated(message),
        third_party=isinstance(message, Request) and is_third_party(message),
        request=request,
    )


def canonical(impu: str) -> str:
    """Return a public identity in the form that is compared, "" for what is none."""
    try:
        return parse_impu(impu)
    except KeyferryError:
        return ""


def _username(message: Message) -> str:
    text = message.get("Authorization")
    try:
        return parse_credentials(text).username if text else ""
    except KeyferryError:
        return ""


def _address(text: str | None) -> str:
    try:
        return canonical(parse_name_addr(text).uri) if text else ""
    except KeyferryError:
        return ""


def _branch(message: Message) -> str:
    rows = message.all("Via")
    try:
        return top_via(rows[0])[0].branch if rows else ""
    except KeyferryError:
        return ""


def _associated(message: Message) -> tuple[str, ...]:
    try:
        found = [canonical(address.uri) for row in message.all("P-Associated-URI") for address in parse_name_addr_list(row)]
    except KeyferryError:
        return ()
    return tuple(impu for impu in found if impu)
