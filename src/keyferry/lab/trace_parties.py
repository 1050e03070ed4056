# SPDX-License-Identifier: Apache-2.0
"""Who is who in a capture: guessed from Via, Path, Request-URI and Diameter commands (TS 24.229 §5, Release 17)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keyferry.lab.trace_facts import Facts
from keyferry.protocol.capture.packets import Endpoint
from keyferry.wiring.tracing import printable

SURE = 10  # votes: nobody else sends this
ROLE_OF_HOP = {1: "UE", 2: "P-CSCF", 3: "I-CSCF"}  # sender of a REGISTER with so many Via values


@dataclass(slots=True)
class Row:
    """One message of a capture."""

    number: int  # of its frame
    at: float  # seconds since the epoch
    transport: str
    octets: int
    source: Endpoint
    target: Endpoint
    facts: Facts
    retransmission: bool = False
    impi: str = ""
    phase: str = ""


class Parties:
    """Name the endpoints of a capture."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._aliases = _aliases(rows)
        self._votes: defaultdict[Endpoint, Counter[str]] = defaultdict(Counter)
        self._vote(rows)
        self._names = {endpoint: votes.most_common(1)[0][0] for endpoint, votes in self._votes.items()}
        by_host: defaultdict[str, set[str]] = defaultdict(set)
        for endpoint, name in self._names.items():
            by_host[endpoint.host].add(name)
        self._only = {host: next(iter(names)) for host, names in by_host.items() if len(names) == 1}

    def of(self, endpoint: Endpoint) -> str:
        """Return the party's name, or its address if nothing tells who it is."""
        endpoint = self._aliases.get(endpoint, endpoint)
        return self._names.get(endpoint) or self._only.get(endpoint.host) or str(endpoint)

    def is_known(self, endpoint: Endpoint) -> bool:
        """Tell whether there is more than an address."""
        return self.of(endpoint) != str(self._aliases.get(endpoint, endpoint))

    def _vote(self, rows: Iterable[Row]) -> None:
        registers: defaultdict[tuple[str, int], list[Row]] = defaultdict(list)
        for row in rows:
            facts = row.facts
            if facts.diameter is not None:
                self._vote_diameter(row)
            elif facts.request and facts.traits.third_party:
                self._for(row.source, "S-CSCF", SURE)
                label = facts.server.partition(".")[0]
                self._for(row.target, f"AS {printable(label)}" if label and not _is_address(facts.server) else "AS", SURE)
            elif facts.request and facts.method == "REGISTER":
                registers[facts.traits.call_id, facts.cseq].append(row)
        for hops in registers.values():
            self._vote_hops(hops)

    def _vote_hops(self, hops: list[Row]) -> None:
        senders = {self._aliases.get(row.source, row.source): _hop(row.facts) for row in hops}
        for row in hops:
            hop = _hop(row.facts)
            self._for(row.source, ROLE_OF_HOP.get(hop, "proxy"))
            target = self._aliases.get(row.target, row.target)
            if senders.get(target, 0) <= hop:  # it sends it no further, as far as the capture shows
                self._for(row.target, "P-CSCF" if hop == 1 else "I/S-CSCF" if hop == 2 else "S-CSCF")

    def _vote_diameter(self, row: Row) -> None:
        client = {"MA": "S-CSCF", "SA": "S-CSCF", "UA": "I-CSCF", "LI": "I-CSCF", "RT": "HSS", "PP": "HSS"}.get(row.facts.method[:2])
        if client is None or not row.facts.request:
            return
        self._for(row.source, client, SURE)
        self._for(row.target, "S-CSCF" if client == "HSS" else "HSS", SURE)

    def _for(self, endpoint: Endpoint, name: str, votes: int = 1) -> None:
        self._votes[self._aliases.get(endpoint, endpoint)][name] += votes


def _hop(facts: Facts) -> int:
    """Return the place on the path, the UE's REGISTER first; a Path was added by a proxy, whatever Via it keeps (TS 24.229 §5.2.2)."""
    protected = facts.answer is not None and facts.answer.protected is not None
    return max(len(facts.vias), 2 if facts.path or protected else 1)


def _aliases(rows: Iterable[Row]) -> dict[Endpoint, Endpoint]:
    """Map the port a TCP connection came from to the one that Via names, at the same address."""
    found = {}
    for row in rows:
        if row.facts.request and row.facts.vias and row.transport == "TCP":
            via = row.facts.vias[0]
            listening = Endpoint(via.host.strip("[]"), via.port or 5060)
            if listening.host == row.source.host and listening.port != row.source.port:
                found[row.source] = listening
    return found


def _is_address(host: str) -> bool:
    return host.startswith("[") or host.replace(".", "").isdigit()
