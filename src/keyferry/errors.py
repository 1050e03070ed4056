# SPDX-License-Identifier: Apache-2.0
"""Every exception keyferry raises on purpose.

KeyferryError
├── ConfigError                 a configuration or argument is wrong (exit code 2)
├── StateError                  the state directory cannot be used
├── StoreError                  a store refused or failed
├── LocalProtocolError          our bug: we asked for something the protocol forbids
├── RemoteProtocolError         theirs: carries the status to answer
│   └── ParseError              octets that are not what the grammar allows
│       └── TooMuchData         they might be, but there are more than we take
├── SecurityError               a check that protects somebody failed
│   ├── MacFailure              AUTN's MAC is wrong (TS 33.102 §6.3.3)
│   ├── SyncFailure             AUTN's SQN is not fresh; carries AUTS
│   ├── AutsRejected            MAC-S of an AUTS is wrong
│   ├── DigestRejected          a Digest response, or what surrounds it, is wrong
│   ├── SealError               a sealed value does not open
│   ├── EspRejected             an ESP packet was not accepted
│   └── PushRefused             a key push was not accepted
├── CxError                     the HSS answered with an error
├── TransportError              a peer could not be reached or did not answer
│   ├── UpstreamFailed          the server behind the proxy did not answer as HTTP demands
│   └── ProtectionUnmet         a policy lets nothing be sent: the way to the peer is not protected as it wants
└── RegistrationFailed          the UE could not register
"""

from __future__ import annotations


class KeyferryError(Exception):
    """The root of the tree."""


class ConfigError(KeyferryError):
    """Say what is wrong in a configuration, where, and what to do."""

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        super().__init__(where, problem, remedy)
        self.where = where
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}" + (f". {self.remedy}" if self.remedy else "")


class StateError(ConfigError):
    """Say why a state directory cannot be used."""


class StoreError(KeyferryError):
    """Say why a store refused or failed."""


class LocalProtocolError(KeyferryError):
    """Report that we asked for something the protocol forbids."""


class RemoteProtocolError(KeyferryError):
    """Report that the peer broke the protocol; `status` is what to answer."""

    def __init__(self, problem: str, status: int = 400) -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = status

    def __str__(self) -> str:
        return self.problem


class ParseError(RemoteProtocolError):
    """Report octets that the grammar of `what` does not allow.

    `what` names the rule, `problem` says what was found; neither ever holds the input itself,
    which may carry a secret.
    """

    def __init__(self, what: str, problem: str, status: int = 400) -> None:
        super().__init__(f"{what}: {problem}", status)
        self.what = what


class TooMuchData(ParseError):
    """Report octets of which there are more than we take, whatever they say."""


class SecurityError(KeyferryError):
    """Report that a check that protects somebody failed."""


class MacFailure(SecurityError):
    """Report a wrong MAC in AUTN (TS 33.102 §6.3.3)."""


class SyncFailure(SecurityError):
    """Report an SQN that is not fresh; `auts` (14 octets) goes back to the network.

    `sqn_he` is that of AUTN, `sqn_ms` the highest that was accepted, `seq_ms_of_ind` the highest SEQ that was for AUTN's IND.
    """

    def __init__(self, auts: bytes, *, sqn_he: int, sqn_ms: int, seq_ms_of_ind: int) -> None:
        super().__init__("the sequence number in AUTN is not fresh")
        self.auts = auts
        self.sqn_he = sqn_he
        self.sqn_ms = sqn_ms
        self.seq_ms_of_ind = seq_ms_of_ind


class AutsRejected(SecurityError):
    """Report a wrong MAC-S in an AUTS (TS 33.102 §6.3.5)."""


class DigestRejected(SecurityError):
    """Report a refused Digest; `stale` says that only the nonce was too old (RFC 7616 §3.3)."""

    def __init__(self, problem: str, *, stale: bool = False) -> None:
        super().__init__(problem)
        self.problem = problem
        self.stale = stale


class SealError(SecurityError):
    """Report a sealed value that does not open under the key and the data given."""


class EspRejected(SecurityError):
    """Report an ESP packet that was dropped; `reason` is one of a fixed set of words, counted as a metric.

    They are: length, spi, replay, icv, padding, next-header, inner, selector. The sender is never told.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PushRefused(SecurityError):
    """Report a refused key push; `reason` is one of a fixed set of words, counted as a metric."""

    def __init__(self, reason: str, status: int = 403) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class CxError(KeyferryError):
    """Carry an Experimental-Result-Code of TS 29.229 §6.2, or a base Diameter result."""

    def __init__(self, code: int, name: str, *, server_name: str = "") -> None:
        super().__init__(f"{name} ({code})")
        self.code = code
        self.name = name
        self.server_name = server_name  # of the S-CSCF that serves the user already, or that a request of the HSS was for

    @property
    def experimental(self) -> bool:
        """Whether the code is one of TS 29.229: their numbers are those of other errors of RFC 6733, their names are not."""
        return self.name.startswith("DIAMETER_ERROR_")


class TransportError(KeyferryError):
    """Report a peer that could not be reached or did not answer in time."""

    def __init__(self, peer: str, problem: str) -> None:
        super().__init__(peer, problem)
        self.peer = peer
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.peer}: {self.problem}"


class UpstreamFailed(TransportError):
    """Report a server behind the proxy that failed; `reason` is one of a fixed set of words, counted as a metric.

    They are: connect, connect-timeout, busy, closed, malformed, answer-timeout, idle-timeout. `status` is what to answer: 502, 503 or 504.
    """

    def __init__(self, peer: str, reason: str, problem: str) -> None:
        super().__init__(peer, problem)
        self.reason = reason
        self.status = 504 if reason.endswith("-timeout") else 503 if reason == "busy" else 502


class LocalFailure(TransportError):
    """Report that nothing was sent for a reason of our own, such as too many connections: it says nothing about the peer."""


class ProtectionUnmet(TransportError):
    """Report that nothing was sent, since a protection policy is not met; the text says why, and holds nothing that a peer chose."""


class RegistrationFailed(KeyferryError):
    """Report that the UE could not register; `status` is the SIP status, 0 if there was none.

    `reasons` are words of a fixed set (docs/errors.md), `why` says them in full, `remedy` what to do; all empty where none is known.
    """

    def __init__(self, problem: str, status: int = 0, *, reasons: tuple[str, ...] = (), why: str = "", remedy: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = status
        self.reasons = reasons
        self.why = why
        self.remedy = remedy

    def __str__(self) -> str:
        return self.problem + (f": {self.why}" if self.why else "") + (f". To do: {self.remedy}" if self.remedy else "")
