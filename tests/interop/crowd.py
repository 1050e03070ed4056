# SPDX-License-Identifier: Apache-2.0
"""A crowd of subscribers that sipp plays: their keys, sipp's file of them, and a verdict on each message that it logged."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from keyferry.protocol.crypto.milenage import Milenage, derive_opc
from keyferry.protocol.crypto.secret import Secret

REALM = "home1.net"


class Member(NamedTuple):
    """One subscriber."""

    user: str
    k: Secret
    op: Secret

    @property
    def impi(self) -> str:
        """Return the private identity."""
        return f"{self.user}_private@{REALM}"

    def res(self, rand: bytes) -> bytes:
        """Return RES, 8 octets."""
        return Milenage(self.k, derive_opc(self.k, self.op)).f2345(rand).res.reveal()

    def provisioned(self) -> str:
        """Return the table of the configuration file."""
        keys = f'k = "{self.k.reveal().hex()}"\nop = "{self.op.reveal().hex()}"'
        return f'\n[[subscribers]]\nimpi = "{self.impi}"\nimpus = ["sip:{self.user}@{REALM}"]\n{keys}\n'

    def injected(self) -> str:
        """Return the line of sipp's file."""
        # The 00 at each end: sipp 3.6 does not end what it reads from hexadecimal, and goes on with what lay in its memory before.
        keys = f"aka_K=0x{self.k.reveal().hex()}00 aka_OP=0x{self.op.reveal().hex()}00 aka_AMF=0x800000"
        return f"{self.user};[authentication username={self.impi} {keys}]\n"


def member(number: int) -> Member:
    """Return one of the crowd; always the same."""
    return Member(f"crowd{number:04}", _key(f"K {number}"), _key(f"OP {number}"))


def _key(name: str) -> Secret:
    # sipp 3.6 reads keys once more as text of its scenario: 0x5b begins a keyword there, a line's end or 0x00 ends the key. So no ASCII.
    return Secret(bytes(octet | 0x80 for octet in hashlib.sha256(name.encode()).digest()[:16]))


# ---- what sipp logged


class Answer(NamedTuple):
    """One REGISTER that answers a challenge."""

    nonce: str
    response: str
    expires: int
    status: int  # of what came back

    @property
    def octets(self) -> int:
        """Return the length of the decoded nonce."""
        return len(base64.b64decode(self.nonce))


@dataclass(slots=True)
class _Call:
    user: str = ""
    requests: dict[int, str] = field(default_factory=dict)  # by CSeq
    finals: dict[int, int] = field(default_factory=dict)


_MESSAGE = re.compile(r"^(REGISTER |SIP/2\.0 )(.*?)\n\n", re.MULTILINE | re.DOTALL)
_STATUS = re.compile(r"(\d{3}) ")


def answers(log: str) -> dict[str, list[Answer]]:
    """Return each user's answers, in order; the messages that sipp logged may hold the same one several times."""
    calls: dict[str, _Call] = {}
    for start, text in _messages(log):
        call = calls.setdefault(_field(text, "Call-ID"), _Call())
        number = int(_field(text, "CSeq").split()[0])
        if start == "REGISTER ":
            call.user = _parameter(text, "username").removesuffix(f"_private@{REALM}")
            call.requests[number] = text
        else:
            found = _STATUS.match(text)
            assert found, text[:40]
            call.finals[number] = int(found[1])
    return {call.user: list(_answers_of(call)) for call in calls.values()}


def _messages(log: str) -> Iterator[tuple[str, str]]:
    for found in _MESSAGE.finditer(log.replace("\r\n", "\n")):
        yield found[1], found[2] + "\n"


def _answers_of(call: _Call) -> Iterator[Answer]:
    for number, text in sorted(call.requests.items()):
        nonce = _parameter(text, "nonce")
        if nonce:
            yield Answer(nonce, _parameter(text, "response"), int(_field(text, "Expires")), call.finals.get(number, 0))
        else:
            assert call.finals.get(number) == 401, f"{call.user}: no challenge"


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}: *(.*)$", text, re.MULTILINE)
    assert found, f"no {name} in {text[:60]}"
    return found[1].strip()


def _parameter(text: str, name: str) -> str:
    found = re.search(rf'[ ,]{name}="([^"]*)"', _field(text, "Authorization"))
    assert found, f"no {name}"
    return found[1]


# ---- the verdict


def judge(who: Member, given: Sequence[Answer], marker: int) -> int:
    """Check one subscriber's answers; return how many failed, each for an RES with a zero octet.

    A nonce has `marker` octets behind RAND and AUTN, or none after a failure: that is the fallback for stacks that take no long nonce.
    """
    failed = 0
    for answer in given:
        assert answer.octets == 32 + marker or (failed and answer.octets == 32), f"{who.user}: a nonce of {answer.octets} octets"
        res = who.res(base64.b64decode(answer.nonce)[:16])
        assert answer.response == response(who.impi, answer.nonce, res.partition(b"\0")[0]), f"{who.user}: sipp answered with another RES"
        assert answer.status == (403 if 0 in res else 200), f"{who.user}: {answer.status}"
        failed += answer.status == 403
    assert [one.expires for one in given if one.status == 200] == [600, 600, 0], f"{who.user}: not registered, registered again, ended"
    return failed


def response(impi: str, nonce: str, password: bytes) -> str:
    """RFC 2617 §3.2.2.1 without qop: what sipp answers to a Release 5 challenge."""
    ha1 = hashlib.md5(f"{impi}:{REALM}:".encode() + password).hexdigest()
    ha2 = hashlib.md5(f"REGISTER:sip:{REALM}".encode()).hexdigest()
    return hashlib.md5(f"{ha1}:{nonce}:{ha2}".encode()).hexdigest()
