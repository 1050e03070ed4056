# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: say why a registration failed, in the log and in the book that the operator reads (*ours*; TS 24.229 §5.4.1.2.3, Release 17)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from keyferry.errors import CxError, KeyferryError
from keyferry.ports import Clock, Counter, CxAnalyst, Log, PendingPush
from keyferry.protocol.digest import Credentials
from keyferry.protocol.identity import Impi, Reg
from keyferry.protocol.ims.failures import EarlierNonces, Failure, FailureBook, TrialBudget
from keyferry.protocol.ims.registration import PendingChallenge, RegisterView
from keyferry.protocol.ims.response_trial import MAX_EARLIER, WrongAnswer, differences, explain_response, res_passwords, shown
from keyferry.protocol.ims.verdicts import Analysis, Reason, Verdict, because
from keyferry.roles.cx_status import status_of

COMMON: Final = 20
"""Characters that a nonce has in common with a challenge's if it is that one, changed behind RAND or cut: 15 octets of RAND."""
CX_REASONS: Final = {5001: Reason.USER_UNKNOWN, 5002: Reason.IDENTITIES}


def reason_of(problem: CxError) -> Analysis:
    """Return what a refusal of the HSS means (TS 29.229 §6.2)."""
    away = Reason.HSS_AWAY if status_of(problem) == 504 else Reason.HSS
    reason = CX_REASONS.get(problem.code, Reason.HSS) if problem.experimental else away
    return because(reason, problem.name if reason in {Reason.HSS, Reason.HSS_AWAY} else "")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Explain failures, as far as their number lets, and note them. An answer to the UE never says more than its status."""

    clock: Clock
    log: Log
    counter: Counter
    analyst: CxAnalyst | None = None  # None: an HSS that says nothing but Cx
    book: FailureBook = field(default_factory=FailureBook)
    budget: TrialBudget = field(default_factory=TrialBudget)
    auts_budget: TrialBudget = field(default_factory=TrialBudget)
    earlier: EarlierNonces = field(default_factory=lambda: EarlierNonces(each=MAX_EARLIER + 1))

    def challenged(self, view: RegisterView, nonce: str, realm: str) -> None:
        """Take note of a challenge: what a UE answers later may belong to an earlier one."""
        self.earlier.put(view.impi, nonce)
        stated = view.credentials.realm if view.credentials else ""
        if stated and stated != realm:
            self.note(view, because(Reason.REALM, f"the UE's home is {shown(stated)}, this network's {shown(realm)}"), 401)

    async def wrong_response(self, view: RegisterView, pending: PendingChallenge, given: Credentials) -> Analysis:
        """Explain a response that did not verify: by what it says, by XRES, and then by the HSS, which has K."""
        if not given.response:  # §5.4.1.2.3: an empty response without auts says that AUTN's MAC was wrong
            return because(Reason.MAC)
        answer = WrongAnswer(
            view.impi, view.impu, pending.realm, pending.nonce, pending.masked, given, self.earlier.of_impi(view.impi, but=pending.nonce)
        )  # fmt: skip
        if not self.budget.take(view.impi, self.clock.monotonic()):
            stated = differences(answer)
            return Analysis((stated,)) if stated else because(Reason.NOT_ANALYSED)
        found = explain_response(answer, res_passwords(pending.xres))
        if found is None and self.analyst is not None:
            try:
                found = await self.analyst.explain_answer(answer)
            except KeyferryError as problem:  # the UE gets its 403 whatever the store of keys says
                self.log.warning("analysis-failed", impi=view.impi, problem=str(problem))
        unexplained = Verdict(Reason.UNEXPLAINED, "" if self.analyst else "K and OPc were not tried: this HSS has no analysis")
        return found or Analysis(((*differences(answer), unexplained),))

    async def synchronisation(self, view: RegisterView, pending: PendingChallenge, auts: bytes) -> Analysis:
        """Say how far the SQNs are apart, or why AUTS is wrong, before the HSS follows it."""
        found = None
        if self.analyst is not None and self.auts_budget.take(view.impi, self.clock.monotonic()):
            try:
                found = await self.analyst.explain_auts(
                    view.impi, pending.nonce, auts, self.earlier.of_impi(view.impi, but=pending.nonce)[:MAX_EARLIER]
                )
            except KeyferryError as problem:
                self.log.warning("analysis-failed", impi=view.impi, problem=str(problem))
        return found or because(Reason.SQN)

    def unknown_nonce(self, view: RegisterView, nonce: str) -> None:
        """Note an answer to a challenge that is not waited for, if it is one that this user got, or part of one."""
        got = self.earlier.of_impi(view.impi)
        if nonce in got:
            place = got.index(nonce)
            which = "the last challenge, which is answered or over" if place == 0 else f"an earlier challenge, {place} before the last"
        elif any(each[:COMMON] == nonce[:COMMON] for each in got):
            which = f"a challenge, changed or cut; it has {len(nonce)} characters"
        else:
            return  # after a restart of ours, or a stranger's
        self.note(view, because(Reason.NONCE, f"it is that of {which}"), 401)

    def unanswered(self, over: PendingChallenge) -> None:
        """Note a challenge whose time is over."""
        failure = Failure(self.clock.now(), "S-CSCF", over.impi, because(Reason.UNANSWERED), over.reg, over.source)
        self._note("challenge-unanswered", failure)

    def cx(self, impi: Impi, problem: CxError, status: int, function: str = "S-CSCF") -> None:
        """Note that the HSS refused."""
        self._note("hss-refused", Failure(self.clock.now(), function, impi, reason_of(problem), status=status, problem=problem.name))

    def push(self, push: PendingPush, problem: str) -> None:
        """Note a key, or the word of a registration, that an AS did not take; with an empty problem, that it did."""
        if not problem:
            self.book.forget(push.impi, lambda failure: failure.server == push.server_name and failure.reg == push.reg)
            return
        detail = f"{push.as_id or 'no key'}, {'the end of its keys' if push.erase else 'a registration'}"
        analysis = because(Reason.PUSH, detail)
        self.book.note(
            Failure(self.clock.now(), "S-CSCF", push.impi, analysis, push.reg, server=push.server_name, problem=problem)
        )  # fmt: skip

    def note(self, view: RegisterView, analysis: Analysis, status: int, problem: str = "") -> None:
        """Write a failed authentication to the log and to the book."""
        reg: Reg | None = None if view.every_contact else view.reg
        failure = Failure(self.clock.now(), "S-CSCF", view.impi, analysis, reg, view.source, status, problem=problem)
        self._note("authentication-failed" if status == 403 else "authentication-repeated", failure)

    def _note(self, event: str, failure: Failure) -> None:
        analysis = failure.analysis
        for reason in analysis.reasons:
            self.counter.count("scscf_failures", reason.value)
        self.book.note(failure)
        write = self.log.info if failure.status == 401 else self.log.warning  # a 401: the UE gets another chance
        write(
            event, impi=failure.impi, reg=failure.reg, source=failure.source, status=failure.status, reasons=",".join(analysis.reasons),
            because=analysis.text, remedy=analysis.remedy, problem=failure.problem,
        )  # fmt: skip
