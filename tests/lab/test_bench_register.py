# SPDX-License-Identifier: Apache-2.0
"""The registration benchmark's two sides against each other, and the load against servers that do wrong."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from keyferry.lab.bench_register import RegisterSetup, card, config_of, serve_registrations
from keyferry.lab.bench_register_load import AnsweringAs, Burst, Order, RegisterLoad, Registrars, load_registrations, ok, quantiles
from keyferry.lab.bench_worker import Usage
from lab.benchkit import part

PUSH = (
    b"REGISTER sip:as SIP/2.0\r\nVia: SIP/2.0/TCP a;branch=z9\r\nFrom: <sip:s>;tag=1\r\nTo: <sip:u>\r\nCall-ID: c\r\nCSeq: 1 REGISTER\r\n"
)


async def bursts(state: Path, *, whole_path: bool, as_count: int) -> tuple[Burst, Burst]:
    load = RegisterLoad(4, as_count, behind_icscf=not whole_path)
    async with part(load_registrations, load) as generator:
        addresses = await generator.answer()
        assert len(addresses) == as_count
        async with part(serve_registrations, RegisterSetup(state, 4, addresses, whole_path)) as server:
            await generator.ask(await server.answer())
            assert server.told[-1] == ("provisioning subscribers", 4, 4)
            first: Burst = await generator.ask(Order(3, None))
            again: Burst = await generator.ask(Order(8, 0.05))
            assert isinstance(await server.ask("usage"), Usage)
    return first, again


async def test_each_subscriber_registers_at_the_s_cscf_and_every_as_is_told(tmp_path: Path) -> None:
    """Two-leg AKA, AUTN and rspauth verified by the load; a push an AS."""
    first, again = await bursts(tmp_path / "state", whole_path=False, as_count=2)
    assert (first.done, first.errors, first.pushes, first.problems) == (4, 0, 8, ())
    assert (again.errors, again.problems) == (0, ())
    assert again.pushes == 2 * again.done > 0


async def test_each_subscriber_registers_along_the_whole_path(tmp_path: Path) -> None:
    """P-CSCF, I-CSCF, S-CSCF, HSS and an AS of our own."""
    first, again = await bursts(tmp_path / "state", whole_path=True, as_count=0)
    assert (first.done, first.errors, first.problems) == (4, 0, ())
    assert (again.errors, again.problems) == (0, ())
    assert again.done > 0


class Wrong(asyncio.DatagramProtocol):
    """Answer each REGISTER with the next of some status lines and headers."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        via = next(line for line in data.split(b"\r\n") if line.startswith(b"Via"))
        answer = self.answers.pop(0).encode()
        if answer:
            self.transport.sendto(b"SIP/2.0 " + answer.replace(b"VIA", via), addr)


async def outcome(*answers: str, pause: float = 0.0) -> tuple[int, list[str]]:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Wrong(*answers), ("127.0.0.1", 0))
    load = RegisterLoad(1, 0, behind_icscf=True, pause=pause)
    registrars = Registrars(load, transport.get_extra_info("sockname"), t1=0.02)
    try:
        async with asyncio.timeout(60):
            tally = await registrars.run(Order(1, None))
        return tally.errors, tally.problems
    finally:
        registrars.close()
        transport.close()


async def test_what_is_wrong_with_an_answer_is_counted_as_an_error() -> None:
    """A refusal, a 200 that nobody proved, a challenge without a nonce or with a false one."""
    assert await outcome("503 Service Unavailable\r\nVIA\r\n\r\n") == (1, ["SIP/2.0 503 Service Unavailable"])
    assert await outcome("200 OK\r\nVIA\r\n\r\n") == (1, ["SIP/2.0 200 OK"])
    assert (await outcome("401 Unauthorized\r\nVIA\r\n\r\n"))[1][0].startswith("ParseError")
    zero = "A" * 43 + "="
    assert (await outcome(f'401 Unauthorized\r\nVIA\r\nWWW-Authenticate: Digest nonce="{zero}"\r\n\r\n'))[1][0].startswith("MacFailure")


async def test_a_pause_before_the_answer_does_not_end_the_burst() -> None:
    """A registration that waits for its card is under way: the burst ends with it, after the pause, and says what was wrong."""
    began = asyncio.get_running_loop().time()
    zero = "A" * 43 + "="
    errors, problems = await outcome(f'401 Unauthorized\r\nVIA\r\nWWW-Authenticate: Digest nonce="{zero}"\r\n\r\n', pause=0.05)
    assert asyncio.get_running_loop().time() - began >= 0.05
    assert errors == 1
    assert problems[0].startswith("MacFailure")


async def test_a_register_that_is_lost_is_sent_again() -> None:
    """Timer E, once is enough here."""
    errors, problems = await outcome("", "486 Busy\r\nVIA\r\n\r\n")
    assert (errors, problems) == (1, ["SIP/2.0 486 Busy"])


async def test_the_as_answers_over_tcp_too() -> None:
    """A push over 1,300 octets leaves UDP."""
    server = AnsweringAs()
    await server.listen()
    try:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write((PUSH + b"Content-Length: 0\r\n\r\n") * 2)
        async with asyncio.timeout(60):
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer == await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    finally:
        server.close()
    assert answer.startswith(b"SIP/2.0 200 OK\r\nVia: SIP/2.0/TCP a;branch=z9\r\n")
    assert (server.pushes, server.pushes_tcp) == (2, 2)


def test_a_200_repeats_what_it_must() -> None:
    """RFC 3261 §8.2.6.2."""
    lines = ok(PUSH + b"X-Other: 1\r\n\r\nbody").split(b"\r\n")
    assert lines == [
        b"SIP/2.0 200 OK", b"Via: SIP/2.0/TCP a;branch=z9", b"From: <sip:s>;tag=1", b"To: <sip:u>;tag=as", b"Call-ID: c",
        b"CSeq: 1 REGISTER", b"Content-Length: 0", b"", b"",
    ]  # fmt: skip


def test_quantiles() -> None:
    """The median and the 99th percentile."""
    assert quantiles([]) == (0.0, 0.0)
    assert quantiles([float(number) for number in range(100, 0, -1)]) == (51.0, 100.0)


def test_cards_differ_and_are_the_same_on_both_sides() -> None:
    """No key travels between the processes."""
    assert card(1).k == card(1).k
    assert card(1).k != card(2).k
    assert len({card(number).impi for number in range(50)}) == 50


def test_nothing_is_refused_while_the_capacity_is_measured(tmp_path: Path) -> None:
    """As many registrations as the machine can do are no overload: a 503 would be counted as an error, and end the benchmark."""
    assert config_of(RegisterSetup(tmp_path, 1, (), whole_path=True)).network.overload == "off"


def test_the_load_survives_a_registrar_that_is_not_there() -> None:
    """ECONNREFUSED is an answer of the kernel, not of the registrar: the REGISTER is sent again, then given up."""

    async def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
            nobody.bind(("127.0.0.1", 0))
            address = nobody.getsockname()
        registrars = Registrars(RegisterLoad(1, 0, behind_icscf=True), address)
        burst = asyncio.ensure_future(registrars.run(Order(1, None)))
        await asyncio.sleep(0)
        assert not burst.done()
        burst.cancel()
        await asyncio.gather(burst, return_exceptions=True)
        registrars.close()

    asyncio.run(run())
