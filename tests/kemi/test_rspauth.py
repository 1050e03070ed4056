# SPDX-License-Identifier: Apache-2.0
"""The script's side of the HSS's socket: an answer in time, or a clear failure."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kemi.kemikit import answer
from keyferry.errors import TransportError
from keyferry.kemi.rspauth import RspauthSocket
from keyferry.protocol.digest import parse_credentials

CREDENTIALS = parse_credentials(answer())


def serve(path: Path, reply: Callable[[bytes], bytes]) -> threading.Thread:
    """Answer one question."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(reply(connection.recv(65536)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_rspauth_is_asked_for_with_the_whole_answer(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def reply(question: bytes) -> bytes:
        asked.append(question)
        return b'{"rspauth": "abc123"}\n'

    thread = serve(tmp_path / "s", reply)
    assert RspauthSocket(str(tmp_path / "s")).ask(CREDENTIALS) == "abc123"
    thread.join(5)
    assert parse_credentials(json.loads(asked[0])["authorization"]) == CREDENTIALS


@pytest.mark.parametrize(
    "said", [b'{"error": "no"}\n', b"[]\n", b"x\n", b"", b'{"rspauth": "a\\"b"}\n', b'{"rspauth": 1}\n', b"x" * 40_000]
)
def test_anything_else_is_a_failure(tmp_path: Path, said: bytes) -> None:
    serve(tmp_path / "s", lambda _: said)
    with pytest.raises(TransportError):
        RspauthSocket(str(tmp_path / "s")).ask(CREDENTIALS)


def test_the_whole_answer_has_half_a_second_not_each_octet(tmp_path: Path) -> None:
    ticks = iter(range(100))
    thread = serve(tmp_path / "s", lambda _: b'{"rspauth": "abc123"')  # and never the end of the line
    with pytest.raises(TransportError, match="nothing in 1 s"):
        RspauthSocket(str(tmp_path / "s"), patience=1, monotonic=lambda: next(ticks) / 2).ask(CREDENTIALS)
    thread.join(5)


def test_the_start_sees_that_an_hss_of_ours_listens(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def refuse(question: bytes) -> bytes:
        asked.append(question)
        return b'{"error": "no such nonce waits for its answer"}\n'

    serve(tmp_path / "s", refuse).join(0)
    RspauthSocket(str(tmp_path / "s")).check("home1.net")
    assert parse_credentials(json.loads(asked[0])["authorization"]).username == "check@home1.net"


@pytest.mark.parametrize("said", [b'{"rspauth": "abc123"}\n', b"{}\n", b"", b'{"error": "x", "rspauth": "y"}\n'])
def test_the_start_says_no_to_anything_else(tmp_path: Path, said: bytes) -> None:
    serve(tmp_path / "s", lambda _: said)
    with pytest.raises(TransportError):
        RspauthSocket(str(tmp_path / "s")).check("home1.net")


def test_who_was_ended_is_asked_for(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def reply(question: bytes) -> bytes:
        asked.append(question)
        return b'{"ended": [[5, 4, "u@home1.net"], [6, 6, "v@home1.net"]]}\n'

    serve(tmp_path / "s", reply)
    assert RspauthSocket(str(tmp_path / "s")).ended("s1", 4) == [(5, 4, "u@home1.net"), (6, 6, "v@home1.net")]
    assert json.loads(asked[0]) == {"ended": "s1", "since": 4}


@pytest.mark.parametrize(
    "said",
    [
        b'{"error": "x"}\n',
        b'{"ended": [5]}\n',
        b'{"ended": [[5, 5, "no impi"]]}\n',
        b'{"ended": [["x", 5, "u@home1.net"]]}\n',
        b'{"ended": [[5, "u@home1.net"]]}\n',
    ],
)
def test_an_hss_that_cannot_say_it_is_a_failure(tmp_path: Path, said: bytes) -> None:
    serve(tmp_path / "s", lambda _: said)
    with pytest.raises(TransportError):
        RspauthSocket(str(tmp_path / "s")).ended("s1", 4)


def test_nobody_there_is_a_failure_at_once(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="does not answer: No such file or directory"):
        RspauthSocket(str(tmp_path / "none")).ask(CREDENTIALS)


def test_who_may_not_ask_is_told_so(tmp_path: Path) -> None:
    """The HSS closes at once on a user that is not `kamailio.user`."""
    serve(tmp_path / "s", lambda _: b"")
    with pytest.raises(TransportError, match="this user may not ask"):
        RspauthSocket(str(tmp_path / "s")).ask(CREDENTIALS)
