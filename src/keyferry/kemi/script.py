# SPDX-License-Identifier: Apache-2.0
"""What Kamailio calls (app_python3, `python_exec`): octets of its messages in, octets out; every decision is in scscf.py.

Kamailio loads this in its first process and forks; each process opens the state for itself at its first call. Octets travel in
hexadecimal, since KSR's strings are UTF-8 and a SIP message need not be. Nothing that is raised here leaves: the configuration holds back a
401 for which a call did not return 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from keyferry.errors import KeyferryError, ParseError, StateError, TransportError
from keyferry.kemi.ended import KemiEnded, Outgoing, Trouble
from keyferry.kemi.push import CONTENT_TYPE, Seal
from keyferry.kemi.rspauth import RspauthSocket
from keyferry.kemi.scscf import NOTHING, KemiPolicy, KemiScscf
from keyferry.kemi.settings import KemiSettings, load_settings
from keyferry.kemi.store import KemiStore
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.identity import AsId
from keyferry.stores.isc_keys import LiveIscKeys
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom

DONE: Final = 1
FAILED: Final = -1
REFUSED: Final = -2
"""What the UE sent must be answered 400; FAILED is our own fault: 503."""
_MESSAGE: Final = "$(mb{s.encode.hexa})"
_START: Final = "$(mb{s.substr,0,11})"
_NO_CHALLENGE: Final = re.compile(r"SIP/2\.0 (?:[12356]|4[1-9]|40[^17])|[A-Z]+ ")
_RESULT: Final = "$avp(fr.kf_hex)"
_RESERVE: Final = "$var(kf_reserve)"
RESERVED: Final = 32_768
"""Octets: a message and its copy, and what rewriting takes meanwhile."""
SHM_MARGIN: Final = 4_194_304
"""Octets of shared memory that must be free for a registration to begin; one takes some 25,000."""
_MANAGERS: Final = {b"q_malloc": "qm", b"f_malloc": "fm", b"tlsf_malloc": "tlsf"}
_HELD: Final = "$avp(g.kf_out)"
"""Of every process, and for good: what leaves in place of a message for which the configuration could not decide."""


class Script:
    """The object whose methods `python_exec` calls; `ksr` is Kamailio's module KSR."""

    def __init__(
        self, ksr: Any, settings: str, reset_avps: Callable[[], object] | None = None, free_memory: Callable[[], int] | None = None
    ) -> None:
        """Read the settings; the state is opened by each process.

        Raises ConfigError, StateError, and OSError or AttributeError outside Kamailio.
        """
        self._ksr = ksr
        self._reset_avps = reset_avps or _reset_avps()
        self._free_memory = free_memory or _free_memory()
        self._settings = load_settings(Path(settings))
        self._scscf: KemiScscf | None = None
        self._ended: KemiEnded | None = None
        self._trouble = Trouble(SystemClock().monotonic, self._warn)
        self._reserved_by = 0  # the process that has memory put aside
        self._pid = 0
        ksr.pv.sets(_HELD, NOTHING.decode())
        if ksr.pv.get(_HELD) != NOTHING.decode():
            raise StateError(_HELD, "cannot be set, so a 401 without memory would leave as it is", "Give Kamailio more memory with -m")

    def child_init(self, rank: int) -> int:
        """Be told of a process that was forked; the first worker says at once what would not work."""
        problems = {what: problem for what, problem in self.check().items() if problem} if rank == 1 else {}
        if "state" in problems:
            self._warn(f"every REGISTER will be answered 503: {problems['state']}")
        if "rspauth" in problems:
            self._warn(f"nonces promise rspauth, and no 200 will carry it, so no UE will use AS keys: {problems['rspauth']}")
        return 0

    def check(self) -> dict[str, str]:
        """Return what must work, and what is wrong with it: "" if nothing."""
        found = {"state": ""}
        try:
            rspauth = self._opened().rspauth
            if isinstance(rspauth, RspauthSocket):
                found["rspauth"] = ""
                rspauth.check(self._settings.realm)
        except TransportError as problem:
            found["rspauth"] = str(problem)
        except KeyferryError as problem:
            found["state"] = str(problem)
        return found

    def own_avps(self, msg: object, argument: str = "") -> int:
        """Give this process its own AVPs again: in 5.6.3 a cdp worker's may be those of a transaction that was freed long ago.

        ims_auth and ims_registrar_scscf leave them so, and whatever looks for an AVP then, as corex does, reads freed memory.
        """
        del msg, argument
        self._reset_avps()
        return DONE

    def reserve(self, msg: object, argument: str = "") -> int:
        """Put private memory of this process aside, which is given back before a challenge is sent; FAILED: there is none."""
        del msg, argument
        if self._reserved_by != os.getpid():
            with contextlib.suppress(Exception):
                self._ksr.pv.sets(_RESERVE, "x" * RESERVED)
                self._reserved_by = os.getpid() if len(self._ksr.pv.get(_RESERVE)) == RESERVED else 0
        return DONE if self._reserved_by == os.getpid() else FAILED

    def passes(self, msg: object, argument: str = "") -> int:
        """Tell whether a message on its way out is seen to be no challenge; FAILED also where it cannot be seen."""
        del msg, argument
        with contextlib.suppress(Exception):
            return DONE if _NO_CHALLENGE.match(self._ksr.pv.get(_START)) else FAILED
        return FAILED

    def leaving(self, msg: object, argument: str = "") -> int:
        """Tell whether a REGISTER that was accepted ends a registration."""
        del msg, argument
        return self._safely(lambda scscf: scscf.leaving(self._message()))

    def register(self, msg: object, argument: str = "") -> int:
        """Take a REGISTER before anything else does; REFUSED: answer 400, FAILED: 503."""
        del msg, argument
        free = self._free_memory()
        if free < SHM_MARGIN:  # without any, Kamailio's modules answer nothing
            self._warn(f"REGISTER answered 503: only {free} octets of shared memory are free, give more with -m")
            return FAILED
        return self._safely(lambda scscf: scscf.asked(self._message()), REFUSED)

    def accepted(self, msg: object, argument: str = "") -> int:
        """Take a REGISTER that ims_www_authenticate has accepted."""
        del msg, argument
        return self._safely(lambda scscf: scscf.accepted(self._message()))

    def pushing(self, msg: object, argument: str = "") -> int:
        """Begin the third-party REGISTERs of a REGISTER."""
        del msg, argument
        return self._safely(lambda scscf: scscf.pushing(self._message()))

    def next_device(self, msg: object, argument: str = "") -> int:
        """Go on to the next device; FAILED after the last."""
        del msg, argument
        return self._safely(lambda scscf: scscf.next_device())

    def pushed(self, msg: object, argument: str = "") -> int:
        """End them."""
        del msg, argument
        return self._safely(lambda scscf: scscf.pushed())

    def ended(self, msg: object, argument: str = "") -> int:
        """Look whom the HSS has ended; FAILED: the state cannot be read."""
        del msg, argument
        try:
            self._opened()
            if self._ended is not None:
                self._ended.look()
            self._trouble.over()
        except TransportError as problem:  # what is owed already is sent all the same
            self._trouble.here(str(problem))
        except KeyferryError as problem:
            self._trouble.here(str(problem))
            return FAILED
        except Exception as problem:
            self._trouble.here(f"failed: {type(problem).__name__}")
            return FAILED
        return DONE

    def next_end(self, msg: object, argument: str = "") -> int:
        """Make a third-party REGISTER that is owed of $uac_req; FAILED after the last, or while there is little shared memory."""
        del msg, argument
        if self._free_memory() < SHM_MARGIN:
            return FAILED
        return self._safely(lambda _: self._send(self._ended.next() if self._ended is not None else None))

    def end_answered(self, msg: object, argument: str = "") -> int:
        """Take an AS's answer to one, or that there was none: what $uac_req says of it."""
        del msg, argument
        return self._safely(lambda _: self._answered())

    def challenge(self, msg: object, argument: str = "") -> int:
        """Leave in $avp(kf_hex) what shall be sent in place of a 401; FAILED: nothing may be.

        A process that could put no memory aside ends, and Kamailio with it: corex would send the 401 as it was.
        """
        del msg, argument
        if self._reserved_by != os.getpid():
            self._warn("no private memory is left (-M): this process ends, so that no key leaves")
            os.kill(os.getpid(), signal.SIGKILL)
        self._reserved_by = 0
        self._reset_avps()
        return self._safely(lambda scscf: self._leave(scscf.challenge(self._message())))

    def answered(self, msg: object, argument: str = "") -> int:
        """Leave in $avp(kf_hex) what shall be sent in place of a 200; FAILED: the 200 itself."""
        del msg, argument
        return self._safely(lambda scscf: self._leave(scscf.answered(self._message())))

    def as_answered(self, msg: object, argument: str = "") -> int:
        """Take a 2xx that came in: if it answers a third-party REGISTER, that is not sent again."""
        del msg, argument
        return self._safely(lambda scscf: scscf.as_answered(self._message()))

    def third_party(self, msg: object, argument: str = "") -> int:
        """Put the key block into a third-party REGISTER."""
        del msg, argument
        return self._safely(lambda scscf: self._set_body(scscf.third_party(self._message())))

    def _message(self) -> bytes:
        text = self._ksr.pv.get(_MESSAGE)
        if not text:  # Kamailio has 65,535 characters for it, and takes longer messages
            raise ParseError("message", "is longer than 32,767 octets")
        return bytes.fromhex(text)

    def _leave(self, data: bytes | None) -> bool:
        if data is None:
            return False
        self._ksr.pv.sets(_RESULT, data.hex())
        return True

    def _set_body(self, body: bytes | None) -> bool:
        if body is None:
            return False
        self._ksr.textops.set_body(body.decode("utf-8"), CONTENT_TYPE)
        return True

    def _send(self, request: Outgoing | None) -> bool:
        if request is None:
            return False
        headers = (
            f"Max-Forwards: 70\r\nContact: <{request.from_uri}>\r\nEvent: registration\r\nExpires: {request.expires}\r\n"
            f"Content-Type: {CONTENT_TYPE}\r\n"
        )
        values = {
            "method": "REGISTER", "ruri": request.uri, "furi": request.from_uri, "turi": request.to_uri, "hdrs": headers,
            "body": request.body.decode("utf-8"), "evparam": request.ticket,
        }  # fmt: skip
        for name, value in values.items():
            self._ksr.pv.sets(f"$uac_req({name})", value)
        self._ksr.pv.seti("$uac_req(evroute)", 1)
        return True

    def _answered(self) -> bool:
        if self._ended is None:
            return False
        self._ended.answered(self._ksr.pv.get("$uac_req(evparam)"), int(self._ksr.pv.get("$uac_req(evcode)")))
        return True

    def _safely(self, work: Callable[[KemiScscf], bool], refused: int = FAILED) -> int:
        try:
            return DONE if work(self._opened()) else refused
        except ParseError as problem:
            self._warn(str(problem))
            return refused
        except KeyferryError as problem:
            self._warn(str(problem))
        except Exception as problem:  # the shell's last line: Kamailio would print what is in a traceback
            self._warn(f"failed: {type(problem).__name__}")
        return FAILED

    def _warn(self, words: str) -> None:
        with contextlib.suppress(Exception):
            printable = words.encode("ascii", "backslashreplace").decode("ascii").replace("\n", " ")
            self._ksr.warn(f"keyferry: {printable[:400]}\n")

    def _opened(self) -> KemiScscf:
        if self._scscf is None or self._pid != os.getpid():
            self._scscf, self._pid = open_scscf(self._settings, self._warn), os.getpid()
            self._ended = ended_of(self._settings, self._scscf)
        return self._scscf


def _reset_avps() -> Callable[[], object]:
    """Return the function of Kamailio's core; its modules call it, so it is there for us, too."""
    function = ctypes.CDLL(None).reset_avps
    function.restype = None
    function.argtypes = ()
    return cast("Callable[[], object]", function)


def _free_memory() -> Callable[[], int]:
    """Return what tells how much shared memory is free now, whichever of its three managers Kamailio has.

    Raises StateError where it has another.
    """
    core = ctypes.CDLL(None)
    name, _, block = (ctypes.c_void_p * 3).in_dll(core, "_shm_root")
    manager = _MANAGERS.get(ctypes.string_at(name or b""))
    if manager is None or not block:
        raise StateError("kamailio", "has shared memory of a kind that is not known here", "Start it without -x and -X")
    function = core[f"{manager}_shm_available"]
    function.restype = ctypes.c_ulong
    function.argtypes = (ctypes.c_void_p,)
    return cast("Callable[[], int]", partial(function, block))


def open_scscf(settings: KemiSettings, warn: Callable[[str], None]) -> KemiScscf:
    """Open what one process needs. Raises StateError, StoreError."""
    clock, random = SystemClock(), SystemRandom()
    with contextlib.ExitStack() as undone:  # a process tries again at each message until it works
        state = undone.enter_context(open_state(settings.state, random=random))
        live = {
            as_id: LiveIscKeys(state, settings.scscf, as_id, clock, _KemiLog(warn))
            for as_ids in settings.servers.values()
            for as_id in as_ids
        }  # fmt: skip
        store = KemiStore(state.path("kemi.db"), state.keyring, clock.now)
        undone.pop_all()
    policy = KemiPolicy(settings.realm, settings.servers, partial(_seal, settings.scscf, live), settings.max_expires, settings.key_max_age)
    rspauth = RspauthSocket(settings.rspauth) if settings.rspauth else None
    return KemiScscf(policy, store, clock.now, warn, rspauth)


def ended_of(settings: KemiSettings, scscf: KemiScscf) -> KemiEnded:
    """Return what sends application servers what they have not answered, and asks our HSS, if it is there, whom it has ended."""
    source = scscf.rspauth if isinstance(scscf.rspauth, RspauthSocket) else None
    return KemiEnded(scscf.policy, settings.scscf, scscf.store, source)


def _seal(scscf: str, live: dict[AsId, LiveIscKeys], as_id: AsId) -> Seal:
    kid, key = next(reversed(live[as_id].current().items()))
    return Seal(scscf, kid, Siv(key))


class _KemiLog:
    """ports.Log over Kamailio's log: events and names, no values that could be secret."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn

    def info(self, event: str, **fields: object) -> None:
        """Drop it: the shipped level shows warnings."""

    def warning(self, event: str, **fields: object) -> None:
        """Tell it."""
        self._warn(f"{event} {', '.join(f'{name}={value}' for name, value in fields.items())}")
