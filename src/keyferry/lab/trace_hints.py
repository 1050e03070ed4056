# SPDX-License-Identifier: Apache-2.0
"""What is wrong in a traced registration, in plain words, with where to look (TS 24.229 §5; RFC 3310 §3; DESIGN §4, §5, §6)."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from keyferry.lab.ladder import UDP_LIMIT
from keyferry.lab.trace_facts import AnswerFacts, ChallengeFacts
from keyferry.lab.trace_parties import Parties, Row
from keyferry.protocol.capture.packets import Endpoint
from keyferry.protocol.ims.notes import word
from keyferry.wiring.tracing import printable

ACCESS_KEYS, AS_KEYS, RSPAUTH = 1, 2, 4
MAX_HINTS: Final = 200
"""Of one IMPI; who has read so many does not read on."""
ANSWER_TIME = 0.5  # seconds after which UDP retransmits


class Hint(NamedTuple):
    """One thing to look at, and the frame where it shows."""

    frame: int
    text: str
    alarm: bool = False  # a secret is lost


_Transaction: TypeAlias = tuple[str, int]


class Seen:
    """The messages of one IMPI, and how to find them; every look is O(1), so that a long capture is no trap."""

    def __init__(self, rows: Sequence[Row], parties: Parties, ended_at: float = 0.0) -> None:
        self.rows = rows
        self.parties = parties
        self.ended_at = ended_at  # when the capture ended
        self.pushes = {row.facts.traits.call_id for row in rows if row.facts.traits.third_party}
        self.finals: dict[_Transaction, Row] = {}  # the first final response
        self.answered: set[tuple[_Transaction, str]] = set()  # and the host that got it
        for row in rows:
            if row.facts.request or row.facts.diameter is not None:
                continue
            self.answered.add((transaction_of(row), row.target.host))
            if row.facts.status >= 200:
                self.finals.setdefault(transaction_of(row), row)

    def name(self, endpoint: Endpoint) -> str:
        """Return a party's name."""
        return self.parties.of(endpoint)

    def is_push(self, row: Row) -> bool:
        """Tell whether a message belongs to a third-party REGISTER."""
        return row.facts.traits.call_id in self.pushes


def transaction_of(row: Row) -> _Transaction:
    """Return what the request and its responses have in common on every hop."""
    return row.facts.traits.call_id, row.facts.cseq


def hints_of(rows: Sequence[Row], parties: Parties, *, ended_at: float = 0.0) -> list[Hint]:
    """Return what is wrong in the messages of one IMPI, alarms first; `ended_at` is when the capture ended."""
    seen = Seen(rows, parties, ended_at)
    found = dict.fromkeys(hint for check in _CHECKS for hint in check(seen))
    return sorted(found, key=lambda hint: (not hint.alarm, hint.frame))[:MAX_HINTS]


# ---- keys that nobody may see


def _leaks(seen: Seen) -> Iterator[Hint]:
    for row in seen.rows:
        challenge = row.facts.challenge
        if challenge is not None and challenge.keys and row.facts.diameter is None and seen.name(row.target).startswith("UE"):
            yield Hint(
                row.number,
                f"CK AND IK GO TO A UE: the 401 of {seen.name(row.source)} to {row.target} still has ck and ik. A P-CSCF must take them "
                "out (TS 24.229 §5.2.2); if no P-CSCF stands there, everybody on Gm has the keys.",
                alarm=True,
            )
        if row.facts.block is not None and not row.facts.block.sealed:
            yield Hint(
                row.number,
                f"AS KEYS IN CLEAR on ISC, for {printable(row.facts.block.as_id)}: seal the key block, or protect the hop.",
                True,
            )


# ---- authentication


def _answers(seen: Seen) -> Iterator[Hint]:
    """Look at each answer of the UE and at what came of it."""
    challenges: dict[str, ChallengeFacts] = {}
    told: set[tuple[str, str]] = set()
    for row in seen.rows:
        facts = row.facts
        if facts.challenge is not None and facts.diameter is None:
            challenges[facts.challenge.nonce] = facts.challenge
        answer = facts.answer
        if answer is None or not answer.nonce or not facts.request or row.retransmission:
            continue
        key = (facts.traits.call_id, answer.nonce)
        if key in told:
            continue  # the same REGISTER one hop further
        told.add(key)
        yield from _of_answer(row, seen.finals.get(transaction_of(row)), seen)
        yield from _against_challenge(row, challenges)


def _of_answer(row: Row, outcome: Row | None, seen: Seen) -> Iterator[Hint]:
    answer = row.facts.answer
    if answer is None:
        return
    status = outcome.facts.status if outcome else 0
    if answer.auts is not None:
        yield Hint(row.number, _RESYNCHRONISATION + ("; here the network answered with a new challenge." if status == 401 else "."))
    elif not answer.response:
        yield Hint(row.number, _MAC_WRONG)
    elif outcome is not None and status == 401 and outcome.facts.challenge is not None:
        same = outcome.facts.challenge.nonce == answer.nonce
        yield Hint(outcome.number, _SAME_NONCE if same else _NOT_ACCEPTED)
    elif outcome is not None and status == 403:
        yield Hint(outcome.number, f"403 from {seen.name(outcome.source)} after an answer: {_REFUSED}")
    for problem in answer.problems:
        yield Hint(row.number, f"Digest of {seen.name(row.source)}: {problem}.")


_RESYNCHRONISATION = (
    "resynchronisation: the ISIM found the network's SQN not fresh and sent auts. Once is normal after an HSS was set up anew; "
    "every time means that the HSS does not take SQN_MS from it"
)
_MAC_WRONG = (
    "the UE answered with an empty response: the MAC in AUTN is wrong for its ISIM. Compare K and OPc (OP is not OPc), and the AMF, "
    "of the HSS with those of the card."
)
_NOT_ACCEPTED = (
    "401 after an answered 401, with another nonce: the response was not accepted. Either it is wrong (K or OPc differ; some clients "
    "spoil a RES that holds a zero octet; SQN ran away), or the S-CSCF no longer knew the challenge (restart, time-out, or the answer "
    "came before the challenge was stored)."
)
_SAME_NONCE = "401 with the same nonce again: the answer did not reach the S-CSCF whole, or is not bound to that challenge."
_REFUSED = "authentication failed for good, or the IMPU does not belong to the IMPI, or is barred."


def _against_challenge(row: Row, challenges: dict[str, ChallengeFacts]) -> Iterator[Hint]:
    answer = row.facts.answer
    if answer is None or not answer.response or not challenges:
        return
    challenge = challenges.get(answer.nonce)
    if challenge is not None:
        for problem in _differences(answer, challenge):
            yield Hint(row.number, problem)
    elif any(one.octets > 32 and one.nonce.startswith(answer.nonce.rstrip("=")[:40]) for one in challenges.values()):
        yield Hint(row.number, "the UE shortened the nonce: it must echo it whole, server data included (RFC 3310 §3.2).")
    else:
        yield Hint(row.number, "the UE answers a nonce that no 401 in this capture has: an old one, or one that was changed on the way.")


def _differences(answer: AnswerFacts, challenge: ChallengeFacts) -> Iterator[str]:
    if challenge.algorithm.lower() != (answer.algorithm or "MD5").lower():
        given = word(answer.algorithm) if answer.algorithm else "not given, so MD5"
        yield f"algorithm {given} answers a challenge of {word(challenge.algorithm)}: the hash differs."
    if challenge.qop and not answer.qop:
        yield "the challenge offers qop and the answer uses none: a masked vector is refused, and there is no rspauth."
    if answer.qop and (answer.nc or "").lower().lstrip("0") not in ("", "1"):
        yield f"nc {word(answer.nc or '')} for a new nonce: it starts with 00000001 (RFC 7616 §3.4)."
    if challenge.realm != answer.realm:
        yield "the realm of the answer is not that of the challenge."


# ---- the marker and what was promised


def _nonces(seen: Seen) -> Iterator[Hint]:
    """Compare the challenge hop by hop: RAND says which 401s are one."""
    by_rand: defaultdict[str, list[Row]] = defaultdict(list)
    for row in seen.rows:
        if row.facts.challenge is not None and row.facts.challenge.rand:
            by_rand[row.facts.challenge.rand].append(row)
    for same in by_rand.values():
        vector = next((row.facts.challenge for row in same if row.facts.diameter is not None), None)
        hops = [row for row in same if row.facts.diameter is None]
        for before, after in itertools.pairwise(hops):
            yield from _changed(before, after, seen)
        if vector is not None and hops and vector.server_data:
            yield Hint(same[0].number, f"the HSS itself gave {len(vector.server_data) // 2} octets after RAND and AUTN.")


def _changed(before: Row, after: Row, seen: Seen) -> Iterator[Hint]:
    old, new = before.facts.challenge, after.facts.challenge
    if old is None or new is None or old.server_data == new.server_data:
        return
    who = seen.name(after.source)
    if old.marker is not None and new.marker is None:
        yield Hint(
            after.number,
            f"the release marker is missing after {who}, though {seen.name(before.source)} sent it: somebody stripped it, and the answer "
            "cannot verify, as the nonce is an input of the hash.",
        )
    else:
        yield Hint(after.number, f"{who} changed the server data of the nonce: the answer will not verify at the S-CSCF.")


def _release(seen: Seen) -> Iterator[Hint]:
    """Compare the release that the UE states hop by hop, and what the S-CSCF makes of it."""
    registers: defaultdict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in seen.rows:
        if row.facts.request and row.facts.method == "REGISTER" and not row.facts.traits.third_party and row.facts.expires != "0":
            registers[row.facts.traits.call_id, row.facts.cseq].append(row)
    stated = False
    for hops in registers.values():
        first = hops[0].facts.release
        stated = stated or first is not None
        lost = next((row for row in hops if first is not None and row.facts.release != first), None)
        if lost is not None:
            yield Hint(
                lost.number,
                f"{seen.name(lost.source)} took +g.keyferry.release out of Contact: the S-CSCF gives raw keys, and pushes none.",
            )
    challenges = [row for row in seen.rows if row.facts.challenge is not None and row.facts.diameter is None]
    if stated and challenges and all(row.facts.challenge and not row.facts.challenge.marker for row in challenges):
        yield Hint(challenges[0].number, "the UE states a release, the S-CSCF sends no marker: it is of Release 5, and pushes no keys.")


def _promises(seen: Seen) -> Iterator[Hint]:
    """Check that what the marker announces comes, registration by registration."""
    phases: defaultdict[str, list[Row]] = defaultdict(list)
    for row in seen.rows:
        phases[row.phase].append(row)
    for rows in phases.values():
        if not any(row.facts.expires == "0" and not row.facts.traits.third_party for row in rows):  # a de-registration brings no keys
            yield from _of_phase(rows, seen)


def _of_phase(rows: list[Row], seen: Seen) -> Iterator[Hint]:
    flags, at = 0, 0
    answers: list[Row] = []  # every 200 after a marker, hop by hop
    for row in rows:
        facts = row.facts
        if facts.diameter is not None:
            continue
        if facts.challenge is not None and facts.challenge.marker is not None:
            flags, at = facts.challenge.marker.flags, row.number
        elif flags and facts.status == 200 and facts.method == "REGISTER" and not seen.is_push(row):
            answers.append(row)
    if not answers:
        return
    if flags & RSPAUTH:
        yield from _rspauth(answers, seen)
    if flags & AS_KEYS and not any(row.facts.block for row in rows):
        yield Hint(at, "the marker announces AS keys, and no key block is in the capture: look for the third-party REGISTER on ISC.")


def _rspauth(answers: list[Row], seen: Seen) -> Iterator[Hint]:
    proved = next((row for row in answers if row.facts.rspauth), None)
    if proved is None:
        yield Hint(
            answers[0].number,
            "the marker announces rspauth, the 200 has none: the UE activates no AS key (the S-CSCF has not proved itself).",
        )
        return
    later = (row for row in answers if row.number > proved.number and transaction_of(row) == transaction_of(proved))
    lost = next((row for row in later if not row.facts.rspauth), None)
    if lost is not None:
        yield Hint(lost.number, f"{seen.name(lost.source)} took Authentication-Info out of the 200: the UE activates no AS key.")


# ---- transport and answers


def _large(seen: Seen) -> Iterator[Hint]:
    for row in seen.rows:
        if (
            row.facts.request
            and row.transport == "UDP"
            and row.octets > UDP_LIMIT
            and not row.retransmission
            and row.facts.diameter is None
        ):
            kind = "third-party REGISTER" if row.facts.traits.third_party else row.facts.method
            yield Hint(
                row.number,
                f"{kind} of {row.octets:,} octets from {seen.name(row.source)} over UDP: above {UDP_LIMIT:,} it must go over TCP "
                "(RFC 3261 §18.1.1); as fragments it may be lost whole.",
            )


def _again(seen: Seen) -> Iterator[Hint]:
    counts: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in seen.rows:
        if row.retransmission:
            counts[seen.name(row.source), seen.name(row.target)].append(row)
    for (source, target), again in counts.items():
        yield Hint(
            again[0].number, f"{len(again)} retransmissions from {source} to {target}: an answer took over {ANSWER_TIME:g} s, or was lost."
        )


_STATUS = {
    400: "the request was not understood", 404: "the user is not known there", 408: "somebody behind it did not answer",
    420: "an extension that is required is not known there", 421: "it wants an extension, such as sec-agree: Gm without IPsec is refused",
    423: "the expiry asked for is too short; Min-Expires says the least", 480: "nobody there, or the HSS did not answer",
    494: "it wants the security agreement of RFC 3329: Security-Client is missing", 500: "an error inside; its log says which",
    503: "overloaded, or what it needs is down", 504: "somebody behind it did not answer",
}  # fmt: skip


def _refusals(seen: Seen) -> Iterator[Hint]:
    told: set[tuple[str, int, int]] = set()
    answered = {transaction_of(row) for row in seen.rows if row.facts.answer is not None and row.facts.answer.response}
    for row in seen.rows:
        facts = row.facts
        key = (facts.traits.call_id, facts.cseq, facts.status)
        if facts.request or facts.diameter is not None or facts.status < 400 or facts.status in (401, 407) or key in told:
            continue
        told.add(key)
        if seen.is_push(row):
            refusal = f"{seen.name(row.source)} answered the third-party REGISTER with {facts.status}"
            meaning = "it refused the key block" if facts.status == 403 else _STATUS.get(facts.status, "the AS has no key")
            yield Hint(row.number, f"{refusal}: {meaning}.")
        elif facts.status == 403 and key[:2] not in answered:
            yield Hint(row.number, f"403 from {seen.name(row.source)}: this user may not register here (unknown, barred, or no roaming).")
        elif facts.status != 403:
            meaning = _STATUS.get(facts.status, printable(facts.reason))
            yield Hint(row.number, f"{facts.status} from {seen.name(row.source)} to {facts.method}: {meaning}.")


def _unanswered(seen: Seen) -> Iterator[Hint]:
    told: set[tuple[_Transaction, Endpoint]] = set()
    for row in seen.rows:
        facts, key = row.facts, (transaction_of(row), row.source)
        if not facts.request or facts.diameter is not None or facts.method == "ACK" or key in told:
            continue
        told.add(key)
        if (transaction_of(row), row.source.host) not in seen.answered and seen.ended_at - row.at > ANSWER_TIME:
            yield Hint(
                row.number, f"no answer from {seen.name(row.target)} to the {facts.method} of {seen.name(row.source)} in this capture."
            )


_CX_RESULTS = {
    5001: "USER_UNKNOWN, the HSS does not know this IMPI or IMPU", 5002: "IDENTITIES_DONT_MATCH, the IMPU is not one of this IMPI's",
    5003: "IDENTITY_NOT_REGISTERED, nobody is registered under this IMPU", 5004: "ROAMING_NOT_ALLOWED, not from this visited network",
    5005: "IDENTITY_ALREADY_REGISTERED, under another IMPI or S-CSCF", 5006: "AUTH_SCHEME_NOT_SUPPORTED, ask for Digest-AKAv1-MD5",
    5007: "IN_ASSIGNMENT_TYPE, this Server-Assignment-Type does not fit the user's state", 5008: "TOO_MUCH_DATA",
    5009: "NOT_SUPPORTED_USER_DATA", 5011: "FEATURE_UNSUPPORTED",
}  # fmt: skip
_BASE_RESULTS = {
    3001: "COMMAND_UNSUPPORTED", 3002: "UNABLE_TO_DELIVER, no route to the HSS", 3003: "REALM_NOT_SERVED, look at Destination-Realm",
    3004: "TOO_BUSY", 3007: "APPLICATION_UNSUPPORTED, the peers did not agree on Cx", 5005: "MISSING_AVP",
    5012: "UNABLE_TO_COMPLY; to a MAR with AUTS: its MAC-S is wrong, or the RAND is not that of the challenge",
}  # fmt: skip


def _cx(seen: Seen) -> Iterator[Hint]:
    """Say what an HSS's refusal means (TS 29.229 §6.2; RFC 6733 §7.1)."""
    for row in seen.rows:
        result = row.facts.result
        if result is not None and not 2000 <= result.code < 3000:
            meaning = (_CX_RESULTS if result.experimental else _BASE_RESULTS).get(result.code, "a code that is not known here")
            yield Hint(row.number, f"{row.facts.method} of {seen.name(row.source)}: {result.code} {meaning}.")


_Check = Callable[[Seen], Iterator[Hint]]
_CHECKS: tuple[_Check, ...] = (_leaks, _answers, _nonces, _release, _promises, _large, _again, _refusals, _cx, _unanswered)
