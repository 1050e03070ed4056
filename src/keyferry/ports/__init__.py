# SPDX-License-Identifier: Apache-2.0
"""What the roles need from the outside, as typing.Protocol classes, and the records that cross them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from keyferry.ports.cx import Assignment as Assignment
from keyferry.ports.cx import CxAnalyst as CxAnalyst
from keyferry.ports.cx import CxClient as CxClient
from keyferry.ports.cx import CxDirectory as CxDirectory
from keyferry.ports.cx import CxServing as CxServing
from keyferry.ports.cx import CxServings as CxServings
from keyferry.ports.cx import DeregistrationReason as DeregistrationReason
from keyferry.ports.cx import OrderedCx as OrderedCx
from keyferry.ports.cx import OwedEnd as OwedEnd
from keyferry.ports.cx import OwedTermination as OwedTermination
from keyferry.ports.cx import Resync as Resync
from keyferry.ports.cx import ServerAssignment as ServerAssignment
from keyferry.ports.cx import ToldEnd as ToldEnd
from keyferry.ports.door import KeySource as KeySource
from keyferry.ports.door import UseLedger as UseLedger
from keyferry.protocol.aka import AkaName
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.esp import EspKeys
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId, Reg
from keyferry.protocol.ims.gm_association import AssociationSet, Endpoint
from keyferry.protocol.ims.key_record import KeyRecord as KeyRecord
from keyferry.protocol.ims.key_record import Offer as Offer
from keyferry.protocol.ims.keypush import Push, PushOutcome
from keyferry.protocol.ip_packet import IpAddress
from keyferry.protocol.sip.message import Message, Request, Response
from keyferry.protocol.sip.uri import SipUri

# ---- time and chance


class Clock(Protocol):
    """Tell the time."""

    def now(self) -> float:
        """Return seconds since the epoch, UTC: lifetimes and everything a peer is told."""

    def monotonic(self) -> float:
        """Return seconds that never go back: timers."""


class RandomSource(Protocol):
    """Yield unpredictable octets."""

    def octets(self, count: int) -> bytes:
        """Return `count` octets from a cryptographic source."""


class Counter(Protocol):
    """Count what happened, by a fixed name and a reason out of a fixed set; never an identity, never a key."""

    def count(self, name: str, reason: str = "") -> None:
        """Add one."""


class Log(Protocol):
    """Write one event with named fields; identities are allowed, keys are not (`Secret` prints its length only)."""

    def info(self, event: str, **fields: object) -> None:
        """Record what an operator wants to see."""

    def warning(self, event: str, **fields: object) -> None:
        """Record what an operator should look at: an alarm."""


# ---- SIP


class SipPeer(NamedTuple):
    """An address on the other side, or a local one.

    Over TLS `name` is, of a next hop, whom its certificate must name, and of a peer that sent something, whom its verified certificate
    does name; "" if it showed none. Through IPsec it is the identity that the other end of the SA has proven (`IpsecSource`).
    Nothing else fills it.
    A peer over "ESP" is at its protected server port inside the tunnel, and `spi` says over which set of SAs.
    """

    transport: str  # "UDP", "TCP", "TLS" or "ESP"
    host: str
    port: int
    name: str = ""  # a SIP domain, lower case (RFC 5922 §7)
    role: str = ""  # of a certificate of our CA: "scscf", "as" …; of a next hop: what it must be, "" any
    spi: int = 0  # of our protected server port, by which `GmProtection` finds the set

    def __str__(self) -> str:
        return f"{self.transport.lower()}:{self.host}:{self.port}"


class SipEvent(NamedTuple):
    """One message as it went over a socket, for a ladder; the message may hold keys, an observer must mask them."""

    at: float  # seconds since the epoch
    node: str
    outgoing: bool
    local: SipPeer
    peer: SipPeer
    octets: int
    message: Message
    retransmission: bool
    wire: int = 0  # octets of the ESP packet that carries it; 0 outside a tunnel


SipObserver: TypeAlias = Callable[[SipEvent], None]
SipHandler: TypeAlias = Callable[[Request, SipPeer], Awaitable[Response]]
"""Answer one request; RemoteProtocolError becomes its status, any other exception a bare 500."""


PeerCheck: TypeAlias = Callable[[SipPeer], Awaitable[None] | None]
"""A protection policy: called with where a transmission really goes, it raises to stop it, at once or when what it returned is awaited.

What is awaited has to be so when it ends: the packet leaves in the same turn of the loop.
"""


class SipClient(Protocol):
    """Send requests as a client transaction (RFC 3261 §17.1.2)."""

    async def send(self, request: Request, hop: SipPeer, *, check: PeerCheck | None = None) -> Response:
        """Add a Via, send to `hop`, retransmit over UDP, return the final response without our Via.

        A request over 1,300 octets goes over TCP whatever `hop` says (RFC 3261 §18.1.1). `check` sees where each
        transmission and retransmission really goes, and raises to stop it: a protection policy.
        Raises TransportError (no answer within 64*T1, or no connection).
        """


class Resolver(Protocol):
    """Find where a SIP URI is served (RFC 3263)."""

    def resolve(self, uri: SipUri) -> SipPeer:
        """Return the next hop.

        Raises TransportError if the host is unknown.
        """


class GmProtection(Protocol):
    """The protected side of Gm: sets of security associations, and ESP under them (TS 33.203 §7)."""

    @property
    def address(self) -> IpAddress:
        """Our address inside the tunnel."""

    @property
    def ports(self) -> tuple[int, int]:
        """Our protected client and server ports inside the tunnel."""

    @property
    def remote(self) -> IpAddress | None:
        """Where the tunnel always ends, for a UE: its P-CSCF."""

    def watch(self, dropped: Callable[[AssociationSet], None]) -> None:
        """Call `dropped` with every set as it ends."""

    def allocate(self, avoid: Collection[int] = ()) -> tuple[int, int]:
        """Return two free SPIs (client, server), not in `avoid`."""

    def begin(self, user: str, ue: Endpoint, pcscf: Endpoint, keys: EspKeys, attempt: str = "") -> AssociationSet:
        """Set up a temporary set; its user's temporary set before it of the same attempt (Call-ID) ends.

        Raises LocalProtocolError, RemoteProtocolError.
        """

    def of_peer(self, peer: SipPeer) -> AssociationSet:
        """Return the set that a message from this peer came over.

        Raises EspRejected if it has ended since.
        """

    def hop(self, association: AssociationSet) -> SipPeer:
        """Return the other side of a set, as a next hop."""

    def sending(self, user: str) -> AssociationSet | None:
        """Return the set for a new request to the other side."""

    def confirmed(self, association: AssociationSet, registration: float) -> None:
        """Take the 2xx to a REGISTER over this set, which grants `registration` seconds."""

    def failed(self, association: AssociationSet) -> None:
        """Take the refusal of a REGISTER over a temporary set."""

    def ended(self, user: str) -> None:
        """Take the end of a registration; retransmissions are still let through for 64*T1."""


# ---- HSS


class SubscribedImpu(NamedTuple):
    """A public identity of a subscription; a barred one may register but not be used (TS 23.228 §5.2.1a)."""

    impu: Impu
    barred: bool = False


class Subscriber(NamedTuple):
    """What the HSS holds of one IMPI. `impus` are one implicit registration set, the default first."""

    impi: Impi
    impus: tuple[SubscribedImpu, ...]
    algorithm: AkaName  # "milenage" or "tuak"
    k: Secret  # 16 octets, 32 possible with TUAK
    opc: Secret  # OPc (16 octets) or TOPc (32 octets)
    amf: bytes  # 2 octets
    profile: str = "default"  # names a set of initial filter criteria
    release: int | None = None  # of its UE, as provisioned: for S-CSCFs that cannot tell by the Contact (DESIGN §10); None: nobody said


class Subscription(NamedTuple):
    """What the HSS needs of a subscriber where no key is used."""

    impus: tuple[SubscribedImpu, ...]
    profile: str
    server_name: str | None  # SIP URI of the S-CSCF assigned
    release: int | None = None  # of its UE, as provisioned
    serving: str | None = None  # SIP URI of the S-CSCF where the user is registered


class SubscriberStore(Protocol):
    """Hold subscribers, keys sealed, and what the HSS remembers of each."""

    async def add(self, subscriber: Subscriber) -> None:
        """Store a new subscriber durably. Raises StoreError if the IMPI, or one of its IMPUs under another IMPI's set, is taken."""

    async def replace(self, subscriber: Subscriber) -> None:
        """Store durably, new or not; SEQ and the S-CSCF's name are kept."""

    async def get(self, impi: Impi) -> Subscriber | None:
        """Return a subscriber."""

    async def for_vector(self, impi: Impi) -> tuple[Subscriber, str | None, int] | None:
        """Return a subscriber, the SIP URI of the S-CSCF assigned and SEQ: `get`, `server_name` and `seq` at once."""

    async def subscription(self, impi: Impi) -> Subscription | None:
        """Return what is not secret of a subscriber, as surely authentic as by `get`."""

    async def all(self) -> Sequence[Subscriber]:
        """Return every subscriber, by IMPI."""

    async def remove(self, impi: Impi) -> bool:
        """Forget a subscriber; false if there was none."""

    async def note_from_file(self, impis: Sequence[Impi]) -> None:
        """Note durably that these subscribers come from the configuration file; who is removed no longer does."""

    async def from_file(self) -> Collection[Impi]:
        """Return the subscribers that come from the configuration file; of all others somebody else takes care."""

    async def of_impu(self, impu: Impu) -> Impi | None:
        """Return whose public identity this is."""

    async def seq(self, impi: Impi) -> int:
        """Return the SEQ up to which values may have been used; 0 for a new subscriber."""

    async def reserve_seq(self, impi: Impi, seq: int, count: int, *, anew: bool = False) -> int:
        """Reserve `count` SEQ values, durably before it returns; return the first.

        They begin at `seq`, or above all that anybody has reserved before, whatever is higher; `anew` forgets what was reserved.
        """

    async def server_name(self, impi: Impi) -> str | None:
        """Return the SIP URI of the S-CSCF assigned, if any."""

    async def set_server_name(self, impi: Impi, name: str | None) -> None:
        """Assign or clear the S-CSCF."""

    async def assignment(self, impi: Impi) -> Assignment:
        """Return which S-CSCFs have to do with a user."""

    async def reassign(self, impi: Impi, change: Callable[[Assignment], Assignment]) -> tuple[Assignment, Assignment]:
        """Change that durably, and return what it was and what it is; calls take effect one after the other, in whatever process.

        What `change`, which must be quick, raises comes out, and nothing has changed. Raises StoreError if there is no such subscriber.
        """

    async def owing(self) -> Mapping[str, float]:
        """Return the S-CSCFs for which there are RTRs, each with the time of the oldest, in seconds since the epoch."""

    async def owed_to(self, server_name: str, limit: int) -> Sequence[tuple[Impi, OwedTermination]]:
        """Return the oldest RTRs for an S-CSCF."""

    async def forget_owed(self, until: float) -> int:
        """Drop the RTRs that are from before, in seconds since the epoch; return how many."""


# ---- S-CSCF


class Registration(NamedTuple):
    """One registered device of one IMPI at the S-CSCF."""

    impi: Impi
    reg: Reg
    impu: Impu  # the To of the REGISTER
    contact: str  # the Contact value as received
    path: tuple[str, ...]
    call_id: str
    cseq: int
    realm: str  # of the SIP challenge
    expires_at: float
    aka_time: float  # when the AKA run that made the keys ended
    key_not_before: float
    release: int | None  # what the UE stated
    k_m: Secret | None  # None: raw keys were used, nothing is ever pushed
    user_data: bytes  # Cx XML, for the filter criteria


class PendingPush(NamedTuple):
    """A third-party REGISTER that an AS has not yet answered 2xx; it names a key set, it holds no key."""

    impi: Impi
    as_id: AsId  # "" for an AS that takes no keys
    reg: Reg
    seq: int
    erase: bool
    server_name: str  # ServerName of the filter criteria: the AS's SIP URI
    impu: Impu  # the To
    give_up_at: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class AsStore:
    """Which key store an AS had when it was last heard of, and how far that one has what an empty one needs."""

    server_name: str
    as_id: AsId
    store_id: str
    place: int | None  # of `walk`: up to where the registrations were pushed again; None: all


class RegistrationStore(Protocol):
    """Hold registrations, K_M sealed, with the pushes they owe, in one transaction."""

    async def commit(self, registration: Registration, pushes: Sequence[PendingPush]) -> None:
        """Replace the registration of (impi, reg) and, per (impi, as_id, server_name, reg), the push owed; durable when it returns."""

    async def commit_all(self, registrations: Sequence[Registration], pushes: Sequence[PendingPush]) -> None:
        """Do so with several registrations and all that they owe, all or none."""

    async def remove(self, impi: Impi, reg: Reg, pushes: Sequence[PendingPush], end: OwedEnd | None = None) -> None:
        """Remove the registration, replace the pushes owed, and owe the HSS `end` if the user has no other; durable when it returns."""

    async def owe_end(self, end: OwedEnd) -> None:
        """Owe the HSS an end if the user has no registration; durable when it returns."""

    async def owed_ends(self) -> Sequence[OwedEnd]:
        """Return what the HSS is still to be told, at start-up: of one user the last, in all a bounded number, the latest.

        `since` is exact to a millisecond, and a little later where several came in one or the clock was set back.
        """

    async def forget_ends(self, until: float) -> int:
        """Drop the ends that are owed since before `until`, as far as that is known; return how many."""

    async def end_told(self, impi: Impi) -> None:
        """Owe the HSS no end of this user's."""

    async def get(self, impi: Impi, reg: Reg) -> Registration | None:
        """Return one registration, expired or not."""

    async def of_impi(self, impi: Impi) -> Sequence[Registration]:
        """Return every device's registration."""

    async def impis(self, after: str, limit: int) -> Sequence[Impi]:
        """Return whose registrations there are, sorted, above `after` ("": all); at most `limit`, and no more are looked at."""

    async def of_impu(self, impu: Impu) -> Impi | None:
        """Return whose registrations name a public identity in their profile, barred or not; None where nobody's do."""

    async def expired(self, now: float, limit: int = 1000) -> Sequence[Registration]:
        """Return registrations whose time is over, the oldest first."""

    async def delivered(self, push: PendingPush) -> None:
        """Note that the AS answered 2xx; a later push of the same set stays owed."""

    async def pending(self) -> Sequence[PendingPush]:
        """Return every push owed, at start-up."""

    async def last_seq(self, impi: Impi, as_id: AsId, reg: Reg) -> int:
        """Return the highest seq ever stored for this set, 0 if none."""

    async def walk(self, after: int, limit: int) -> Sequence[tuple[int, Impi, Reg]]:
        """Return registrations and their places, by place, above the place `after` (0: all); one that is renewed keeps its place."""

    async def as_stores(self) -> Sequence[AsStore]:
        """Return what was last heard of every AS."""

    async def keep_as_store(self, store: AsStore) -> None:
        """Replace what was heard of (server_name, as_id); durable when it returns."""

    async def count(self) -> int:
        """Return the number of registrations."""


# ---- AS


class KeyStore(Protocol):
    """Hold pushed keys, sealed, and tombstones."""

    @property
    def store_id(self) -> str:
        """A random name that the store got when it was made: after a loss there is another."""

    async def apply(self, push: Push, *, pusher: str, realm: str, now: float) -> PushOutcome:
        """Decide by `keypush.receive` and store in one transaction; durable when it returns. Raises PushRefused."""

    async def erase_impu(self, pusher: str, impu: Impu, as_ids: Sequence[AsId], now: float) -> int:
        """Erase every key of that pusher whose IMPUs hold `impu` (a body-less Expires 0); return how many."""

    async def lookup(self, key_id: KeyId, as_id: AsId, now: float) -> KeyRecord | None:
        """Return a key valid at `now`."""

    def lookup_now(self, key_id: KeyId, as_id: AsId, now: float) -> KeyRecord | None:
        """Do the same without waiting: may block some 100 µs, never on a network."""

    async def claim_first(self, record: KeyRecord) -> bool:
        """Take the first nonce of a key, once and for ever, durably; false if it was taken, the key went, or the store began after it."""

    async def used(self, record: KeyRecord, now: float) -> None:
        """End the superseded keys of the record's device if the record itself is not superseded."""

    async def count(self, now: float, as_id: AsId | None = None) -> int:
        """Return the number of keys valid at `now`, of one application server or of all."""

    async def sweep(self, now: float) -> int:
        """Delete keys and tombstones whose time is over; return how many rows went."""


# ---- documents


@dataclass(frozen=True, slots=True)
class Document:
    """A stored XCAP document."""

    body: bytes
    etag: str  # strong, without quotes


class DocumentStore(Protocol):
    """Hold whole documents; a write is durable before its answer."""

    async def get(self, auid: str, owner: str, path: str) -> Document | None:
        """Return a document."""

    async def put(self, auid: str, owner: str, path: str, document: Document, *, expect: Callable[[Document | None], None]) -> bool:
        """Store; true if it is new. `expect` sees what is stored, inside the transaction, and raises to refuse."""

    async def delete(self, auid: str, owner: str, path: str, *, expect: Callable[[Document | None], None]) -> bool:
        """Delete; false if there was none. `expect` as in `put`."""


# ---- UE


@dataclass(frozen=True, slots=True)
class UeState:
    """What a UE keeps between two commands."""

    impi: Impi
    seq_ms: tuple[int, ...]  # SEQ_MS by IND (TS 33.102 annex C.2)
    call_id: str
    cseq: int
    contact: str
    impu: Impu
    realm: str
    expires_at: float  # 0: not registered
    release_marker: bytes  # server-specific data of the last nonce
    masked: bool
    rspauth: bool
    k_m: Secret | None
    gm_keys: Secret | None  # CK || IK as used on Gm, 32 octets
    no_keys_because: str  # why k_m is None, "" if it is not
    associated: tuple[str, ...]  # P-Associated-URI
    service_route: tuple[str, ...]
    pinned: tuple[str, ...]  # home realms that once proved flags 7


class UeStore(Protocol):
    """Hold the UE's state, sealed."""

    async def load(self, impi: Impi) -> UeState | None:
        """Return the state."""

    async def save(self, state: UeState) -> None:
        """Store it durably; SEQ_MS of no IND becomes lower by that, whatever `state` says."""

    def alone(self, impi: Impi) -> AbstractAsyncContextManager[None]:
        """Keep this UE's other procedures waiting, in whatever process. Raises StateError that says who holds it for too long."""

    async def claim_first(self, key_id: KeyId, now: float) -> bool:
        """Note durably that the first nonce of a key is used; false if it was before, by whatever process (DESIGN §7)."""


Fields: TypeAlias = Mapping[str, object]
