# SPDX-License-Identifier: Apache-2.0
"""The benchmark: registrations and authenticated GETs a second on one core, real sockets and a real disk, the load on another core."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar, get_args

from keyferry.lab.bench_first import REQUESTS, FirstOrder, Way, load_first_requests
from keyferry.lab.bench_granian import granian_is_installed
from keyferry.lab.bench_handshake import HandshakeOrder, Kind, load_handshakes
from keyferry.lab.bench_http import HttpSetup, serve_documents, why_no_psk
from keyferry.lab.bench_http_load import HttpLoad, HttpOrder, load_documents
from keyferry.lab.bench_proxy import ProxySetup, serve_behind, serve_proxied
from keyferry.lab.bench_register import RegisterSetup, serve_hss, serve_registrations
from keyferry.lab.bench_register_load import Burst, Order, RegisterLoad, load_registrations
from keyferry.lab.bench_report import NAMES, BenchOptions, BenchReport, Name, Round, Row, filesystem_of, machine_of
from keyferry.lab.bench_worker import BenchFailed, Part, Progress, Usage, Worker, cores, worker
from keyferry.ports import Clock
from keyferry.transports.clock import SystemClock

T = TypeVar("T", bound=str)

IN_MEMORY = {"tmpfs", "ramfs"}
WHAT = {
    "register": "registration, 1 key push: S-CSCF with HSS",
    "register-3": "registration, 3 key pushes: S-CSCF with HSS",
    "register-cx": "registration, 1 key push: S-CSCF, its HSS over Diameter",
    "register-cx-hss": "that HSS, a process on the core of the load",
    "path": "registration, 1 key push: P-, I-, S-CSCF, HSS and AS in one process",
    "get-open": "GET over TLS, the door asks nothing",
    "get": "GET over TLS, SIM login (Digest SHA-256)",
    "get-granian-open": "the same two by granian: the door asks nothing",
    "get-granian": "by granian, SIM login (Digest SHA-256)",
    "proxied-direct": "GET over TLS, SIM login, the application in the process",
    "proxied": "GET over TLS, SIM login, the application behind the proxy",
    "handshake-certificate": "TLS 1.3 handshake, P-256 certificate, no request",
    "handshake-psk13": "TLS 1.3 handshake with the pushed key, no request",
    "handshake-psk12": "TLS 1.2 handshake with the pushed key (ECDHE-PSK)",
    "first-401": "first request, 50 ms one way: connection, 401, answer",
    "first-nonce": "first request, 50 ms one way: connection, first nonce",
    "first-psk13": "first request, 50 ms one way: connection by TLS 1.3 PSK",
    "first-psk12": "first request, 50 ms one way: connection by TLS 1.2 PSK",
}
PUSHES = {"register": 1, "register-3": 3, "register-cx": 1}
FIRST_SECONDS = 0.4  # so long takes a first request with a 401 over the long way


class _Pair(NamedTuple):
    """The process that is measured and the load."""

    measured: Worker
    load: Worker


def run_bench(options: BenchOptions, clock: Clock, progress: Progress) -> BenchReport:
    """Measure everything that is asked for.

    Raises BenchFailed; whatever happens, no process is left, and no file.
    """
    folder = state_folder()
    report = BenchReport(machine_of(clock, folder), options)
    for name in NAMES:
        if name not in options.only:
            continue
        if name == "get-granian" and not granian_is_installed():
            report.skipped[name] = "granian is not installed; it is in requirements/test.txt"
            continue
        with tempfile.TemporaryDirectory(prefix="keyferry-bench-", dir=folder) as place:
            no_psk = why_no_psk() if name in {"handshake", "first-request"} else None
            if no_psk:
                report.skipped[f"{name} with a pre-shared key"] = no_psk
            report.rows += MEASURES[name](name, options, Path(place) / "state", progress)
    return report


def measure(options: BenchOptions, progress: Progress) -> BenchReport:
    """Measure by the machine's clock; for the command line, which has no clock of its own."""
    return run_bench(options, SystemClock(), progress)


def state_folder() -> Path:
    """Return where the state is put: on a disk, for the promise to be durable is part of what is measured."""
    folder = Path(tempfile.gettempdir())
    return Path.cwd() if filesystem_of(folder) in IN_MEMORY else folder


def _register(name: Name, options: BenchOptions, state: Path, progress: Progress) -> list[Row]:
    count = PUSHES.get(name, 0)
    setup = RegisterLoad(options.subscribers, count, behind_icscf=name != "path")
    measured_core, load_core = cores()
    with ExitStack() as stack:
        load = stack.enter_context(worker(load_registrations, load_core, setup))
        addresses = load.answer(progress)
        registrar = RegisterSetup(state, options.subscribers, addresses, whole_path=name == "path")
        measured = stack.enter_context(worker(serve_registrations, measured_core, registrar))
        load.ask(measured.answer(progress))
        pair = _Pair(measured, load)
        progress(f"{name}: each subscriber once", 0, options.rounds)
        first = _burst(pair, Order(options.in_flight, None))
        rounds = []
        for number in range(options.rounds):
            progress(name, number, options.rounds)
            rounds.append(_burst(pair, Order(options.in_flight, options.seconds)))
        progress(name, options.rounds, options.rounds)
    _check_pushes(count, [first, *rounds])
    return [Row(name, WHAT[name], tuple(rounds)), Row(f"{name}-first", f"{WHAT[name]}, each subscriber's first", (first,))]


def _register_cx(name: Name, options: BenchOptions, state: Path, progress: Progress) -> list[Row]:
    """Ask the HSS in a process of its own; what both have used is told for each."""
    measured_core, load_core = cores()
    with ExitStack() as stack:
        load = stack.enter_context(worker(load_registrations, load_core, RegisterLoad(options.subscribers, PUSHES[name], True)))
        addresses = load.answer(progress)
        apart = RegisterSetup(state.with_name("hss"), options.subscribers, addresses, whole_path=False)
        hss = stack.enter_context(worker(serve_hss, load_core, apart))
        asking = apart._replace(state=state, hss=hss.answer(progress))
        measured = stack.enter_context(worker(serve_registrations, measured_core, asking))
        load.ask(measured.answer(progress))
        progress(f"{name}: each subscriber once", 0, options.rounds)
        _burst(_Pair(measured, load), Order(options.in_flight, None))
        rounds: list[Round] = []
        beside: list[Round] = []
        for number in range(options.rounds):
            progress(name, number, options.rounds)
            before: Usage = hss.ask("usage")
            one = _burst(_Pair(measured, load), Order(options.in_flight, options.seconds))
            after: Usage = hss.ask("usage")
            rounds.append(one)
            beside.append(Round(one.burst, after.cpu_user - before.cpu_user, after.cpu_system - before.cpu_system, after.max_rss))
        progress(name, options.rounds, options.rounds)
    _check_pushes(PUSHES[name], rounds)
    return [Row(name, WHAT[name], tuple(rounds)), Row(f"{name}-hss", WHAT[f"{name}-hss"], tuple(beside))]


def _get(name: Name, options: BenchOptions, state: Path, progress: Progress) -> list[Row]:
    """Open door and login in turn: what disturbs the machine disturbs both."""
    measured_core, load_core = cores()
    setup = HttpSetup(state, options.subscribers, granian=name == "get-granian")
    with ExitStack() as stack:
        measured = stack.enter_context(worker(serve_documents, measured_core, setup))
        load = stack.enter_context(worker(load_documents, load_core, HttpLoad(options.subscribers, options.connections)))
        load.ask(measured.answer(progress))
        orders = {f"{name}-open": HttpOrder(login=False, seconds=options.seconds), name: HttpOrder(login=True, seconds=options.seconds)}
        return _in_turn(name, options, _Pair(measured, load), orders, progress)


def _proxied(name: Name, options: BenchOptions, state: Path, progress: Progress) -> list[Row]:
    """Log in to one application in the process and behind the proxy; the server behind shares the core of the load."""
    measured_core, load_core = cores()
    with ExitStack() as stack:
        behind = stack.enter_context(worker(serve_behind, load_core))
        setup = ProxySetup(state, options.subscribers, behind.answer(progress))
        measured = stack.enter_context(worker(serve_proxied, measured_core, setup))
        load = stack.enter_context(worker(load_documents, load_core, HttpLoad(options.subscribers, options.connections)))
        load.ask(measured.answer(progress))
        orders = {"proxied-direct": HttpOrder(login=True, seconds=options.seconds, beside=True), name: HttpOrder(True, options.seconds)}
        return _in_turn(name, options, _Pair(measured, load), orders, progress)


def _in_turn(name: Name, options: BenchOptions, pair: _Pair, orders: dict[str, HttpOrder], progress: Progress) -> list[Row]:
    """Each user once at each door, then bursts, one door after the other in each round."""
    progress(f"{name}: each user once", 0, options.rounds)
    for order in orders.values():
        pair.load.ask(order._replace(seconds=None))
        _fine(pair.load.ask("go"))
    rounds: dict[str, list[Round]] = {row: [] for row in orders}
    for number in range(options.rounds):
        progress(name, number, options.rounds)
        for row, order in orders.items():
            pair.load.ask(order)  # connections are made before the clock starts
            rounds[row].append(_burst(pair, "go"))
    progress(name, options.rounds, options.rounds)
    return [Row(row, WHAT[row], tuple(found)) for row, found in rounds.items()]


def _handshake(name: Name, options: BenchOptions, state: Path, progress: Progress) -> list[Row]:
    """Nothing but handshakes; one kind after the other in each round."""
    rounds: dict[Kind, list[Round]] = {kind: [] for kind in _with_psk(get_args(Kind))}
    with _doors(HttpSetup(state, options.connections, psk=True), load_handshakes, progress) as pair:
        for number in range(options.rounds):
            progress(name, number, options.rounds)
            for kind, found in rounds.items():
                found.append(_burst(pair, HandshakeOrder(kind, options.seconds, options.connections)))
        progress(name, options.rounds, options.rounds)
    return [Row(f"handshake-{kind}", WHAT[f"handshake-{kind}"], tuple(found)) for kind, found in rounds.items()]


def _first(name: Name, options: BenchOptions, state: Path, progress: Progress) -> list[Row]:
    """One request after the other, each by a user of its own: a first nonce is good for one."""
    count = max(1, round(options.seconds / FIRST_SECONDS))
    rounds: dict[Way, list[Round]] = {way: [] for way in _with_psk(REQUESTS)}
    numbers = iter(range(count * options.rounds * len(rounds)))
    with _doors(HttpSetup(state, count * options.rounds * len(rounds), psk=True), load_first_requests, progress) as pair:
        for number in range(options.rounds):
            progress(name, number, options.rounds)
            for way, found in rounds.items():
                found.append(_burst(pair, FirstOrder(way, tuple(islice(numbers, count)))))
        progress(name, options.rounds, options.rounds)
    return [Row(f"first-{way}", WHAT[f"first-{way}"], tuple(found)) for way, found in rounds.items()]


def _with_psk(names: Iterable[T]) -> list[T]:
    """Leave out what needs pre-shared keys where Python has none."""
    return [name for name in names if not name.startswith("psk") or why_no_psk() is None]


@contextmanager
def _doors(setup: HttpSetup, part: Part, progress: Progress) -> Iterator[_Pair]:
    """Run the doors on one core and a load on the other, which knows where they are."""
    measured_core, load_core = cores()
    with worker(serve_documents, measured_core, setup) as measured, worker(part, load_core) as load:
        load.ask(measured.answer(progress))
        yield _Pair(measured, load)


def _burst(pair: _Pair, order: object) -> Round:
    before: Usage = pair.measured.ask("usage")
    burst: Burst = pair.load.ask(order)
    after: Usage = pair.measured.ask("usage")
    return Round(_fine(burst), after.cpu_user - before.cpu_user, after.cpu_system - before.cpu_system, after.max_rss)


def _fine(burst: Burst) -> Burst:
    """Return a burst that did something. Raises BenchFailed with the first problems if nothing went well."""
    if not burst.done:
        raise BenchFailed(f"nothing succeeded: {'; '.join(burst.problems) or 'no answer'}")
    return burst


def _check_pushes(count: int, rounds: list[Round]) -> None:
    """Each registration is to have pushed: a figure without its pushes would be another figure."""
    for one in rounds:
        if one.burst.pushes < count * one.burst.done:
            raise BenchFailed(f"{one.burst.done} registrations made only {one.burst.pushes} pushes")


MEASURES: dict[Name, Callable[[Name, BenchOptions, Path, Progress], list[Row]]] = {
    "register": _register, "register-3": _register, "register-cx": _register_cx, "path": _register, "get": _get, "get-granian": _get,
    "proxied": _proxied, "handshake": _handshake, "first-request": _first,
}  # fmt: skip
