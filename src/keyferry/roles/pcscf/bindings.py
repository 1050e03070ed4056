# SPDX-License-Identifier: Apache-2.0
"""The P-CSCF's memory of who is registered through it (TS 24.229 §5.2.2.1, Release 17): contact, source, identities, Service-Route."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from keyferry.errors import ParseError
from keyferry.ports import SipPeer
from keyferry.protocol.identity import Reg
from keyferry.protocol.ims.agenda import Agenda
from keyferry.protocol.sip.headers import parse_name_addr_list
from keyferry.protocol.sip.message import Request, Response

EVERY_DEVICE = Reg("*")
"""Of a `Contact: *` (RFC 3261 §10.2.2); no device has this name, for theirs are base64."""
MAX_BINDINGS = 200_000  # the oldest goes first
MAX_IMPUS = 1_000
"""Of one P-Associated-URI; a user profile has under 20."""
MAX_SERVICE_ROUTES = 10
LAST_WORDS = 32.0
"""Seconds, 64*T1, that a NOTIFY may be under way after the end of a registration."""
EXPIRY_BATCH = 500
"""Bindings forgotten per sweep; more wait for the next."""


class Device(NamedTuple):
    """Who registers: one device of one subscriber, or who de-registers: all of them."""

    impi: str
    reg: Reg

    def stands_for(self, other: Device) -> bool:
        """Tell whether what this one asks for is the other's affair, too."""
        return self == other or (self.reg == EVERY_DEVICE and self.impi == other.impi)


class Binding(NamedTuple):
    """One registered device."""

    device: Device
    token: str  # the user of our Record-Route: by it a request of the network finds the device, and nobody guesses it
    contact: str  # the SIP URI
    source: SipPeer  # where its REGISTER came from
    user: str  # of its security associations; "" where Gm is not protected
    impus: tuple[str, ...]  # P-Associated-URI, the default first
    service_route: tuple[str, ...]  # name-addrs
    expires_at: float  # seconds since the epoch
    ended: bool = False  # it may send no more, but a NOTIFY that says so still reaches it
    since: float = 0.0  # seconds since the epoch: the last REGISTER

    @property
    def resource(self) -> str:
        """The identity under which the user's registrations are watched: the default one that is a SIP URI, "" for none."""
        return next((impu for impu in self.impus if impu.startswith("sip:")), "")


@dataclass(slots=True)
class Bindings:
    """Find registered devices by what a message shows."""

    limit: int = MAX_BINDINGS
    _by_device: OrderedDict[Device, Binding] = field(default_factory=OrderedDict)
    _by_token: dict[str, Device] = field(default_factory=dict)
    _by_sender: dict[tuple[str, str], Device] = field(default_factory=dict)  # contact, and the address that its REGISTER came from
    _by_source: dict[tuple[str, int], Device] = field(default_factory=dict)  # the address and port of its REGISTER
    _of_resource: dict[str, dict[Device, None]] = field(default_factory=dict)
    _agenda: Agenda[str] = field(default_factory=Agenda)  # of tokens
    _of_impi: dict[str, set[Device]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._by_device)

    def put(self, binding: Binding) -> None:
        """Remember a device, as it is now; it keeps the token it had."""
        self.drop(binding.device)
        self._by_device[binding.device] = binding
        self._of_impi.setdefault(binding.device.impi, set()).add(binding.device)
        # A contact alone names nobody: a UE writes into its own what it likes, another's too.
        self._by_token[binding.token] = self._by_sender[binding.contact, binding.source.host] = binding.device
        self._by_source[binding.source.host, binding.source.port] = binding.device
        self._of_resource.setdefault(binding.resource, {})[binding.device] = None
        self._agenda.put(binding.token, binding.expires_at)
        if len(self._by_device) > self.limit:
            self.drop(next(iter(self._by_device)))

    def drop(self, device: Device) -> Binding | None:
        """Forget a device; return what was known."""
        binding = self._by_device.pop(device, None)
        if binding is not None:
            self._by_token.pop(binding.token, None)
            others = self._of_impi[device.impi]
            others.discard(device)
            if not others:
                del self._of_impi[device.impi]
            self._agenda.drop(binding.token)
            sender = (binding.contact, binding.source.host)
            if self._by_sender.get(sender) == device:
                del self._by_sender[sender]
            source = (binding.source.host, binding.source.port)
            if self._by_source.get(source) == device:
                del self._by_source[source]
            devices = self._of_resource[binding.resource]
            del devices[device]
            if not devices:
                del self._of_resource[binding.resource]
        return binding

    def end(self, device: Device, now: float) -> None:
        """Take the end of a registration: the UE is reached for LAST_WORDS seconds more."""
        binding = self.drop(device)
        if binding is not None:
            self.put(binding._replace(ended=True, expires_at=min(binding.expires_at, now + LAST_WORDS)))

    def over(self, now: float) -> list[Binding]:
        """Forget bindings whose time is over; return them."""
        devices = [self._by_token[token] for token in self._agenda.due(now, EXPIRY_BATCH)]
        return [binding for binding in map(self.drop, devices) if binding is not None]

    def of_resource(self, resource: str) -> list[Binding]:
        """Return a user's bindings, by the identity that is watched; those whose time is just over, too."""
        return [self._by_device[device] for device in self._of_resource.get(resource, ())]

    def get(self, device: Device, now: float) -> Binding | None:
        """Return a device's binding if its time is not over."""
        binding = self._by_device.get(device)
        return binding if binding is not None and binding.expires_at > now else None

    def of_impi(self, impi: str) -> list[Binding]:
        """Return what is known of a subscriber's devices, also of those whose time is over."""
        return [self._by_device[device] for device in sorted(self._of_impi.get(impi, ()))]

    def of_token(self, token: str, now: float) -> Binding | None:
        """Return the binding that our Record-Route names."""
        device = self._by_token.get(token)
        return None if device is None else self.get(device, now)

    def of_sender(self, contact: str, host: str, now: float) -> Binding | None:
        """Return the binding of a contact address that was registered from `host`."""
        device = self._by_sender.get((contact, host))
        return None if device is None else self.get(device, now)

    def is_source(self, peer: SipPeer, now: float) -> bool:
        """Tell whether a device is registered from an address and port."""
        device = self._by_source.get((peer.host, peer.port))
        binding = None if device is None else self.get(device, now)
        return binding is not None and not binding.ended


def associated(response: Response) -> tuple[str, ...]:
    """Return the identities that a 200 lists, the default first; none where the list cannot be read."""
    try:
        found = [address.uri for row in response.all("P-Associated-URI") for address in parse_name_addr_list(row)]
    except ParseError:
        return ()
    return tuple(found[:MAX_IMPUS])


def service_route(response: Response) -> tuple[str, ...]:
    """Return the Service-Route of a 200 (RFC 3608 §6.2); empty where it cannot be read."""
    try:
        found = [f"<{address.uri}>" for row in response.all("Service-Route") for address in parse_name_addr_list(row)]
    except ParseError:
        return ()
    return tuple(found[:MAX_SERVICE_ROUTES])


def contact_of(request: Request) -> str:
    """Return the contact URI that a request states, "" if there is none."""
    values = request.all("Contact")
    return parse_name_addr_list(values[0])[0].uri if values and values[0] != "*" else ""
