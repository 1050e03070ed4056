# SPDX-License-Identifier: Apache-2.0
"""The Cx reference point (TS 29.228 §6, Release 17): what CSCFs ask of an HSS, and it of an S-CSCF."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

from keyferry.protocol.aka import AuthVector
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.response_trial import WrongAnswer
from keyferry.protocol.ims.selection import AuthorizationType, UserAuthorization
from keyferry.protocol.ims.verdicts import Analysis


class ServerAssignment(IntEnum):
    """Server-Assignment-Type (TS 29.229 §6.3.15)."""

    NO_ASSIGNMENT = 0
    REGISTRATION = 1
    RE_REGISTRATION = 2
    TIMEOUT_DEREGISTRATION = 4
    USER_DEREGISTRATION = 5
    ADMINISTRATIVE_DEREGISTRATION = 8
    AUTHENTICATION_FAILURE = 9
    AUTHENTICATION_TIMEOUT = 10


class Resync(NamedTuple):
    """What a MAR carries in SIP-Authorization after a synchronisation failure (TS 29.228 §6.3)."""

    rand: bytes  # 16 octets
    auts: bytes  # 14 octets


class CxClient(Protocol):
    """The Cx reference point (TS 29.228 §6); every method raises CxError."""

    async def user_authorization(
        self, impi: Impi, impu: Impu, visited_network: str, kind: AuthorizationType = AuthorizationType.REGISTRATION
    ) -> UserAuthorization:
        """UAR (§6.1.1): return the S-CSCF assigned, or whom to choose from; with capabilities the latter, whoever is assigned."""

    async def location_info(self, impu: Impu) -> str:
        """LIR (§6.1.4): return the Server-Name of the S-CSCF that serves a user."""

    async def multimedia_auth(
        self, impi: Impi, impu: Impu, server_name: str, resync: Resync | None = None, *, masked: bool = False
    ) -> AuthVector:
        """MAR (§6.3): return one authentication vector; `masked` says that the P-CSCF will get CK', IK' (DESIGN §4), and may be ignored."""

    async def server_assignment(self, impi: Impi, impu: Impu, server_name: str, assignment: ServerAssignment) -> bytes:
        """SAR (§6.1.2): return User-Data, the Cx XML (annex B); empty where the assignment ends."""


class OrderedCx(CxClient, Protocol):
    """What a Cx server asks an HSS: it knows more of a request than who asks in the process."""

    async def server_assignment(self, impi: Impi, impu: Impu, server_name: str, assignment: ServerAssignment, *, order: int = 0) -> bytes:
        """SAR; `order` is higher in a later request of the same S-CSCF, 0 where that is not known."""


class CxDirectory(Protocol):
    """What a Cx server asks an HSS besides: what a request over the wire leaves out, and what is provisioned for peers not ours."""

    async def identities(self, impi: Impi | None, impus: Sequence[Impu]) -> tuple[Impi, Impu]:
        """Return whom a SAR names, which may name one only: the IMPI, and its first IMPU. Raises CxError: unknown, or they do not match."""

    async def release(self, impi: Impi) -> int | None:
        """Return the release of a user's UE as provisioned, None where it is not."""


class DeregistrationReason(IntEnum):
    """Reason-Code of an RTR (TS 29.229 §6.3.17)."""

    PERMANENT_TERMINATION = 0
    NEW_SERVER_ASSIGNED = 1
    SERVER_CHANGE = 2
    REMOVE_S_CSCF = 3

    @property
    def word(self) -> str:
        """The name as people write it: `permanent-termination`."""
        return self.name.lower().replace("_", "-")


class OwedEnd(NamedTuple):
    """The end of a user's last registration at an S-CSCF, of which the HSS is still to be told."""

    impi: Impi
    impu: Impu
    assignment: ServerAssignment
    since: float = 0.0  # seconds since the epoch; 0: not known


class OwedTermination(NamedTuple):
    """A RTR that an S-CSCF has not taken yet."""

    server_name: str
    reason: DeregistrationReason
    info: str
    since: float  # seconds since the epoch


class ToldEnd(NamedTuple):
    """The end by which an S-CSCF of ours let go of a user."""

    server_name: str
    order: int  # of its SAR (OrderedCx)
    since: float  # seconds since the epoch


class Assignment(NamedTuple):
    """Which S-CSCFs have to do with a user (TS 29.228 §6.1.2.1)."""

    server_name: str | None = None  # SIP URI of the one assigned
    serving: str | None = None  # of the one where the user is registered, another while a challenge of the one assigned is out
    owed: tuple[OwedTermination, ...] = ()  # what others may still have of the user, one RTR each
    order: int = 0  # of the SAR by which `serving` came to serve (OrderedCx)
    since: float = 0.0  # seconds since the epoch, if that is known: when it came
    ended: ToldEnd | None = None  # the last one, while nobody has challenged or registered the user since


class CxServing(Protocol):
    """What an HSS asks of an S-CSCF (TS 29.228 §6.1.3, §6.2.2); both methods raise CxError, and then nothing has changed there."""

    async def registration_termination(self, impi: Impi, impus: Sequence[Impu], reason: DeregistrationReason, info: str) -> None:
        """RTR: end the registrations of these public identities, () of all; `info` is for people. Nobody registered is no error."""

    async def push_profile(self, impi: Impi, user_data: bytes) -> None:
        """PPR: take User-Data, the Cx XML, for every registration of the user."""


class CxServings(Protocol):
    """How an HSS finds the S-CSCF that it has assigned."""

    def at(self, server_name: str) -> CxServing | None:
        """Return the S-CSCF of this Server-Name, None if it cannot be reached from here."""


class CxAnalyst(Protocol):
    """What an HSS that has the keys may offer besides Cx: explain a failed authentication. Only verdicts cross; a Diameter HSS has none."""

    async def explain_answer(self, answer: WrongAnswer) -> Analysis | None:
        """Return what explains a wrong response, None if nothing does. Costs some milliseconds: the caller bounds how often."""

    async def explain_auts(self, impi: Impi, nonce: str, auts: bytes, earlier: Sequence[str]) -> Analysis | None:
        """Return how far the SQNs are apart, or what explains a wrong AUTS (14 octets); None for a user who is unknown."""
