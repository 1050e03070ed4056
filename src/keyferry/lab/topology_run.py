# SPDX-License-Identifier: Apache-2.0
"""`keyferry lab up`, `status` and `down`: namespaces, links, a process for each part, a UE that registers and writes a document."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from keyferry.errors import ConfigError
from keyferry.lab.topology import AS_ID, DOCUMENT, PARTS, Command, Isc, LabFailed, Part, Plan, Shaping, Side, make_plan
from keyferry.lab.topology_files import LabFiles, write_files
from keyferry.lab.topology_ipsec import SIDES as IPSEC_SIDES
from keyferry.lab.topology_ipsec import LabIpsec, need_programs
from keyferry.lab.topology_kamailio import LabKamailio
from keyferry.lab.topology_record import Record, command, end_lab, environment, marked, must, namespaces_of_all, read_record, search_path
from keyferry.ports import RandomSource
from keyferry.transports.clock import SystemRandom
from keyferry.wiring.ipsec_rules import Side as IpsecSide

LABS: Final = Path("/run/keyferry-lab")
"""Where labs are; as they, it does not outlive a reboot."""
START: Final = 60.0
"""Seconds that a part may take until it is ready; a machine may be busy."""
REGISTER: Final = 120.0
"""Seconds that the UE's commands may take: SIP itself gives up after 32 s."""
LOOK: Final = 0.1
RACES: Final = 3
"""Attempts to register with Kamailio."""
SILENT: Final = ["does not answer"]
"""Why a part is not ready that does not say why."""
TAIL: Final = 1_500
"""Octets of a log that an error shows."""
_ASK: Final = """
import http.client, json, sys
found = []
for place in sys.argv[1:]:
    port, _, path = place.partition("/")
    try:
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=5)
        connection.request("GET", "/" + path)
        found.append(connection.getresponse().read().decode())
    except OSError:
        found.append(None)
print(json.dumps(found))
"""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What a lab shall be."""

    id: str = ""  # "": a new one
    delays: Sequence[str] = ()
    losses: Sequence[str] = ()
    shaping: str = "auto"  # or netem, relay
    kamailio: bool = False
    isc: str = ""  # "": tls, with Kamailio ipsec
    python: str = ""  # for Kamailio's script; "": looked for
    kamailio_icscf: bool = False


def up(options: UpOptions, labs: Path, tell: Tell) -> dict[str, Any]:
    """Make a lab; whatever keeps it from its end, Ctrl-C too, leaves nothing behind.

    Raises ConfigError for options, LabFailed, StateError.
    """
    _refuse(options)
    random = SystemRandom()
    isc: Isc = "ipsec" if options.isc == "ipsec" or options.kamailio else "tls"
    plan = make_plan(
        options.id or _new_id(random, labs), options.delays, options.losses, isc, kamailio=options.kamailio,
        kamailio_icscf=options.kamailio_icscf,
    )  # fmt: skip
    taken = namespaces_of_all() & set(plan.namespaces)
    files = LabFiles(labs / plan.id)
    kamailio = LabKamailio(files, plan, options.python) if plan.kamailios else None
    if kamailio is not None:
        kamailio.check()
    if taken and not files.record.exists():
        raise LabFailed(f"the namespace {min(taken)} is there, and no lab in {labs} has made it", "Give another --id")
    _make_root(files)
    record = Record(plan.id, f"{plan.id}-{random.octets(16).hex()}", isc=isc, links=[_link_data(each) for each in plan.links])
    with _ends_on_sigterm():
        try:
            record.keep(files)
            _Up(plan, files, record, random, tell, kamailio).run(options.shaping)
        except BaseException:
            with _deaf():
                tell("ending what was made")
                end_lab(files, record)
            raise
    return status_of(files, record)


def down(lab: str, labs: Path) -> dict[str, Any]:
    """End a lab, or what there is of it; one that is not there is ended already. Raises LabFailed."""
    _need_root()
    files = LabFiles(labs / make_plan(lab).id)
    if not files.record.exists():
        with contextlib.suppress(OSError):
            files.root.rmdir()  # made, and not written down yet
        return {"id": lab, "was": False, "processes": 0, "namespaces": 0}
    return {"id": lab, "was": True, **end_lab(files, read_record(files))}


def all_labs(labs: Path) -> list[str]:
    """Return the names of the labs that are there."""
    return sorted(each.parent.name for each in labs.glob("*/lab.json"))


def status(lab: str, labs: Path) -> dict[str, Any]:
    """Return what a lab is now. Raises LabFailed."""
    _need_root()
    files = LabFiles(labs / make_plan(lab).id)
    if not files.record.exists():
        raise LabFailed(f"there is no lab {lab} in {labs}", "Make it: keyferry lab up")
    return status_of(files, read_record(files))


def status_of(files: LabFiles, record: Record) -> dict[str, Any]:
    """Return each part with whether it lives and answers, and what was done."""
    plan = Plan(record.id)
    answers: dict[str, str | None] = {}
    for side in dict.fromkeys(part.side for part in PARTS):
        there = [part for part in PARTS if part.side == side]
        found = ask(plan, side, [f"{part.admin}/ready" for part in there])
        answers.update(zip((part.name for part in there), found, strict=True))
    parts = [{**part, **_state_of(part, answers, record.token)} for part in record.parts]
    whole = record.ready and all(part["alive"] and part["reasons"] != SILENT for part in parts)
    return {
        "ok": whole, "id": record.id, "directory": str(files.root), "shaping": record.shaping, "isc": record.isc, "links": record.links,
        "namespaces": record.namespaces, "parts": parts, **record.done,
    }  # fmt: skip


def _state_of(part: Mapping[str, Any], answers: Mapping[str, str | None], token: str) -> dict[str, Any]:
    """Return whether a part lives, and what it says of its readiness; who has no listener for that says nothing against it."""
    alive = marked(part["pid"], token)
    body = answers.get(part["name"], '{"ready": true}')
    said: dict[str, Any] = json.loads(body) if body is not None and alive else {"ready": False, "reasons": SILENT}
    return {"alive": alive, "ready": bool(said["ready"]), "reasons": list(said.get("reasons", ()))}


def ask(plan: Plan, side: Side, places: Sequence[str]) -> list[str | None]:
    """GET places such as `8081/health` of the loopback address of a namespace; None for what does not answer."""
    done = command(plan.inside(side, sys.executable, "-I", "-S", "-c", _ASK, *places))
    found: list[str | None] = json.loads(done.stdout) if done.returncode == 0 else [None] * len(places)
    return found


class _Up:
    """The steps of `lab up`."""

    def __init__(
        self, plan: Plan, files: LabFiles, record: Record, random: RandomSource, tell: Tell, kamailio: LabKamailio | None = None
    ) -> None:
        self.plan = plan
        self.files = files
        self.record = record
        self.random = random
        self.tell = tell
        self.kamailio = kamailio

    def run(self, shaping: str) -> None:
        """Take all of them. Raises LabFailed, StateError."""
        self.tell(f"lab {self.plan.id}: configurations, certificates and keys in {self.files.root}")
        write_files(self.files, self.plan, self.random)
        self.tell(f"namespaces {', '.join(self.plan.namespaces)}")
        self.record.namespaces = list(self.plan.namespaces)
        self.record.keep(self.files)
        for words in self.plan.making(self.record.token):
            self._make_namespace(words)
        self._connect(shaping)
        if self.plan.isc == "ipsec":
            self._protect()
        self._start_all("hss", "as")  # who is asked is there first
        if self.kamailio is not None:
            for role in self.plan.kamailios:
                self._start_kamailio(self.kamailio, role)
        self._start_all(*(name for name in ("scscf", "icscf", "pcscf") if name not in self.plan.kamailios))
        self._until("the HSS has all its connections", self._cx_is_up)
        self._work()
        self.record.keep(self.files)

    def _start_all(self, *names: str) -> None:
        self.tell(f"starting {', '.join(names)}")
        for name in names:
            self._start(self.plan.part(name))
        for name in names:
            self._until_ready(name)

    def _start_kamailio(self, kamailio: LabKamailio, role: str) -> None:
        name = {"scscf": "kamailio", "icscf": "kamailio-icscf"}[role]
        self.tell(f"starting Kamailio as {role[0].upper()}-CSCF")
        kamailio.write(role)
        self._spawn(name, self.plan.namespace("home"), (self.plan.part(role).address,), kamailio.command(role))

        def known() -> bool:
            self._lives(name)
            return kamailio.is_known(role)

        self._until("Kamailio has a connection to the HSS", known)

    def _make_namespace(self, words: Command) -> None:
        done = command(words)
        if "File exists" in done.stderr:
            raise LabFailed(
                f"a namespace of that name has just been made by somebody else: {done.stderr.strip()[:300]}", "Give another --id"
            )
        if done.returncode:
            remedy = "In a container: give it CAP_SYS_ADMIN and CAP_NET_ADMIN, and a /run that may be mounted on"
            raise LabFailed(f"no network namespace can be made: {done.stderr.strip()[:300]}", remedy)

    def _connect(self, shaping: str) -> None:
        """Make the links, with what delays and loses packets on them."""
        self.record.shaping = self._shaping_of(shaping)
        self.tell(", ".join(f"{link.name} {link.delay:g} ms {link.loss:g} %" for link in self.plan.links) + f" by {self.record.shaping}")
        if self.record.shaping == "relay":
            spec = [[*self.plan.relay_devices(number), link.delay, link.loss] for number, link in enumerate(self.plan.links)]
            words = (sys.executable, "-m", "keyferry.lab.topology_relay", json.dumps(spec), str(self.files.said("links")))
            self._spawn("links", "", (), words)
            self._until_ready("links")
        made: Shaping = "relay" if self.record.shaping == "relay" else "none"
        for step in (*self.plan.cabling(made), *self.plan.addressing()):
            must(step)
        if self.record.shaping == "netem":
            for step in self.plan.netem():
                must(step)

    def _protect(self) -> None:
        """Let nothing pass between S-CSCF and AS but through a security association."""
        ipsec = LabIpsec(self.files, self.plan)
        self.tell(f"IPsec between S-CSCF and AS, ESP in {'the kernel' if ipsec.esp == 'kernel' else 'user space'}")
        ipsec.write()
        for step in ipsec.rules():
            must(step)
        for side, network in IPSEC_SIDES.items():
            words, more = ipsec.charon(side)
            self._spawn(f"charon-{side}", self.plan.namespace(network), (), words, more)
        for side in IPSEC_SIDES:
            self._until(f"the charon of the {side} listens", partial(self._charon_listens, ipsec, side))
            words, more = ipsec.loading(side)
            must(words, {**environment(self.record.token), **more})
        self._until("IPsec protects ISC", lambda: not ipsec.problem())

    def _charon_listens(self, ipsec: LabIpsec, side: IpsecSide) -> bool:
        self._lives(f"charon-{side}")
        return ipsec.listens(side)

    def _shaping_of(self, wanted: str) -> Shaping:
        if not any(link.delay or link.loss for link in self.plan.links):
            return "none"
        if wanted == "relay":
            return "relay"
        trial = ("tc", "-n", self.plan.namespace("ue"), "qdisc", "add", "dev", "lo", "root", "netem", "delay", "0ms")
        done = command(trial)
        if done.returncode == 0:
            must(("tc", "-n", self.plan.namespace("ue"), "qdisc", "del", "dev", "lo", "root"))
            return "netem"
        if wanted == "netem":
            raise LabFailed(f"this kernel has no netem: {done.stderr.strip()[:200]}", "Load sch_netem, or leave --shaping out")
        return "relay"

    def _start(self, part: Part) -> None:
        keyferry = (sys.executable, "-m", "keyferry", *part.command)
        words = (*keyferry, "--config", str(self.files.config(part.name)), "--state", str(self.files.state(part.name)))
        namespace = self.plan.namespace(part.side)
        others = {each.address for each in PARTS if each is not part}
        addresses = [each for each in self.plan.addresses(part.side) if each not in others]
        self._spawn(part.name, namespace, addresses, self.plan.inside(part.side, *words))

    def _spawn(self, name: str, namespace: str, addresses: Sequence[str], words: Command, more: Mapping[str, str] | None = None) -> None:
        """Start a process that goes on when we have ended, and hears no Ctrl-C that is for us."""
        program = shutil.which(words[0], path=search_path())
        if program is None:
            raise LabFailed(f"{words[0]} is not installed", "On Debian: apt install iproute2")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        said = os.devnull if name == "links" else str(self.files.said(name))
        pid = os.posix_spawn(
            program, words, {**environment(self.record.token), **(more or {})}, setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, said, flags, 0o600),
                (os.POSIX_SPAWN_OPEN, 2, str(self.files.log(name)), flags, 0o600),
            ],
        )  # fmt: skip
        log = str(self.files.log(name))
        self.record.parts.append({"name": name, "namespace": namespace, "addresses": list(addresses), "pid": pid, "log": log})
        self.record.keep(self.files)

    def _until_ready(self, name: str) -> None:
        def ready() -> bool:
            self._lives(name)
            said = self.files.said(name)
            return said.exists() and said.read_text("utf-8").endswith("\n")

        self._until(f"{name} is ready", ready)

    def _lives(self, name: str) -> None:
        """Raise LabFailed if a part has ended."""
        part = next(each for each in self.record.parts if each["name"] == name)
        ended, code = os.waitpid(part["pid"], os.WNOHANG)
        if ended:
            raise LabFailed(f"{name} ended with {os.waitstatus_to_exitcode(code)} before it was ready: {self._tail(name)}")

    def _until(self, what: str, so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START
        while not so():
            if time.monotonic() > deadline:
                raise LabFailed(
                    f"after {START:g} s it is still not so that {what}",
                    f"The logs said: {self._tail(*(each['name'] for each in self.record.parts))}",
                )
            time.sleep(LOOK)

    def _tail(self, *names: str) -> str:
        texts = [
            self.files.log(name).read_text("utf-8", "replace")[-TAIL // len(names) :] for name in names if self.files.log(name).exists()
        ]
        return " | ".join(text.strip() for text in texts if text.strip()) or "it said nothing"

    def _cx_is_up(self) -> bool:
        for name in {"scscf", "icscf"} - set(self.plan.kamailios):
            (health,) = ask(self.plan, "home", [f"{self.plan.part(name).admin}/health"])
            if health is None or not any(json.loads(health).get("hss", {}).values()):
                return False
        return True

    def _work(self) -> None:
        """Let the UE register, wait for the key at the application server, write the document and read it again."""
        self.tell("the UE registers")
        began = time.monotonic()
        registered = self._register()
        seconds = time.monotonic() - began
        self._until("the application server has the UE's key", self._has_key)
        self.tell("the UE writes its simservs document")
        began = time.monotonic()
        put = self._ue("put", DOCUMENT, str(self.files.document))
        took = time.monotonic() - began
        got = self._ue("get", DOCUMENT)
        if got["body"] != self.files.document.read_text("utf-8"):
            raise LabFailed("the document that was read is not the one that was written")
        self.record.done = {
            "registration": {"seconds": round(seconds, 2), **{name: registered[name] for name in ("impi", "impu", "release", "rspauth")}},
            "pushes": self._pushes(),
            "document": {"seconds": round(took, 2), "status": put["status"], "etag": put["etag"], "url": f"https://{AS_ID}/{DOCUMENT}"},
        }  # fmt: skip

    def _register(self) -> dict[str, Any]:
        """Register; ims_auth sends its 401 before it stores the vector, so who answers Kamailio at once may have to begin again."""
        for attempt in range(RACES if self.plan.kamailio else 1, 0, -1):
            try:
                return self._ue("register")
            except LabFailed:
                if attempt == 1:
                    raise
        raise AssertionError

    def _ue(self, *words: str) -> dict[str, Any]:
        """Run `keyferry ue` in the UE's namespace; return what it printed."""
        name, *rest = words
        common = ("--config", str(self.files.ue), "--state", str(self.files.state("ue")), "--json")
        inside = self.plan.inside("ue", sys.executable, "-m", "keyferry", "ue", name, *common, *rest)
        done = command(inside, env=environment(self.record.token), limit=REGISTER)
        if done.returncode:
            logs = self._tail(*(each["name"] for each in self.record.parts))
            raise LabFailed(f"`keyferry ue {name}` failed: {(done.stderr or done.stdout).strip()[-TAIL:]}", f"The logs said: {logs}")
        printed: dict[str, Any] = json.loads(done.stdout)
        return printed

    def _has_key(self) -> bool:
        (health,) = ask(self.plan, "as", [f"{self.plan.part('as').admin}/health"])
        return health is not None and json.loads(health)["keys"].get(AS_ID, 0) > 0

    def _pushes(self) -> dict[str, int]:
        """Return what became of the pushes at the application server, by its metrics."""
        (metrics,) = ask(self.plan, "as", [f"{self.plan.part('as').admin}/metrics"])
        return pushes_of(metrics or "")


def pushes_of(metrics: str) -> dict[str, int]:
    """Return how many pushes came to what end, by an application server's /metrics."""
    found: dict[str, int] = {}
    for line in metrics.splitlines():
        name, _, rest = line.partition('_total{reason="')
        reason, _, number = rest.partition('"} ')
        if name in {"keyferry_as_pushes", "keyferry_as_pushes_refused"} and float(number):
            found[reason] = found.get(reason, 0) + int(float(number))
    return found


def _refuse(options: UpOptions) -> None:
    """Refuse what cannot be made here, before anything is made. Raises LabFailed."""
    for option, value, known in (
        ("--shaping", options.shaping, ("auto", "netem", "relay")),
        ("--isc", options.isc or "tls", ("tls", "ipsec")),
    ):
        if value not in known:
            raise ConfigError(option, f"{value!r} is not {', '.join(known[:-1])} or {known[-1]}")
    _need_root()
    if options.kamailio and options.isc == "tls":
        raise ConfigError(
            "--isc tls", "Kamailio checks no peer before it pushes a key", "Leave it out: IPsec and its drop rules protect ISC"
        )
    if options.isc == "ipsec" or options.kamailio:
        need_programs()


def _need_root() -> None:
    if os.geteuid() != 0:
        raise LabFailed("network namespaces are made by root alone", "Run it with sudo, or as root in a container that may make them")


def _new_id(random: RandomSource, labs: Path) -> str:
    while True:
        name = random.octets(2).hex()
        if not (labs / name).exists():
            return name


def _make_root(files: LabFiles) -> None:
    try:
        files.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = files.root.parent.stat()
        if status.st_uid not in {0, os.geteuid()} or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
            raise LabFailed(f"{files.root.parent} can be changed by others than root", "Give a directory of root's: --state DIR")
        files.root.mkdir(mode=0o700)
    except FileExistsError:
        raise LabFailed(
            f"a lab {files.root.name} is there already", f"End it: keyferry lab down {files.root.name} --state {files.root.parent}"
        ) from None
    except OSError as problem:
        raise LabFailed(f"{files.root} cannot be made: {problem.strerror}", "Give another directory: --state DIR") from problem


def _link_data(link: Any) -> dict[str, Any]:
    data = asdict(link)
    return {"name": data["name"], "near": list(link.near), "far": list(link.far), "delay_ms": link.delay, "loss_percent": link.loss}


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Let SIGTERM be what Ctrl-C is."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _deaf() -> Iterator[None]:
    """Let a second Ctrl-C not stop the clean-up of the first."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
