# SPDX-License-Identifier: Apache-2.0
"""A stock Kamailio is the P-CSCF of UEs without protection of Gm: between a UE and a home network of hand-made octets."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from interop.kamailio_kit import started
from interop.peer_table import meet
from interop.peers import program
from system.serving import EXAMPLES, free_port, keyferry, until

pytestmark = pytest.mark.interop
CK, IK = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
NONCE = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAIk="  # that ends in Ik= is chance, and no ik
CREDENTIALS = 'Digest username="u@home1.net", realm="home1.net", nonce="", uri="sip:home1.net", response=""'


class Between:
    """A UE, a home network, and Kamailio between them."""

    def __init__(self, port: int, ue: socket.socket, home: socket.socket) -> None:
        self.port, self.ue, self.home = port, ue, home
        self._count = 0

    def ask(self, *headers: str, authorization: str = CREDENTIALS) -> None:
        """Send a REGISTER."""
        self._count += 1
        me = "{}:{}".format(*self.ue.getsockname())
        lines = [
            "REGISTER sip:home1.net SIP/2.0", f"Via: SIP/2.0/UDP {me};branch=z9hG4bK{self._count}x", "Max-Forwards: 70",
            "From: <sip:u@home1.net>;tag=1", "To: <sip:u@home1.net>", f"Call-ID: {self._count}", "CSeq: 1 REGISTER",
            f"Contact: <sip:u@{me}>", f"Authorization: {authorization}", *headers, "Content-Length: 0", "", "",
        ]  # fmt: skip
        self.ue.sendto("\r\n".join(lines).encode(), ("127.0.0.1", self.port))

    def at_home(self) -> str:
        """Return what the home network gets of the last REGISTER: one of before may come again."""
        while True:
            data = self.home.recv(65535).decode()
            if self._is_of_last(data):
                return data

    def _is_of_last(self, data: str) -> bool:
        return f"\r\nCall-ID: {self._count}\r\n" in data

    def answered(self, request: str, status: str, *headers: str, body: str = "") -> str:
        """Answer at home; return what the UE gets."""
        self.answer(request, status, *headers, body=body)
        return self.at_ue()

    def answer(self, request: str, status: str, *headers: str, body: str = "") -> None:
        """Answer at home."""
        vias = re.findall(r"(?m)^Via: .*?\r$", request)
        kept = [line for name in ("From", "To", "Call-ID", "CSeq") for line in re.findall(rf"(?m)^{name}: .*?\r$", request)]
        lines = [f"SIP/2.0 {status}", *(line.rstrip("\r") for line in (*vias, *kept)), *headers, f"Content-Length: {len(body)}", "", body]
        self.home.sendto(
            "\r\n".join(lines).replace("To: <sip:u@home1.net>", "To: <sip:u@home1.net>;tag=2").encode(), ("127.0.0.1", self.port)
        )

    def at_ue(self) -> str:
        """Return the final response to the last REGISTER."""
        while True:
            data = self.ue.recv(65535).decode()
            if not data.startswith("SIP/2.0 1") and self._is_of_last(data):
                return data


@pytest.fixture(name="between", scope="module")
def between_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Between]:
    """Start a Kamailio."""
    program("kamailio")
    meet("kamailio (P-CSCF)")
    folder, port = tmp_path_factory.mktemp("pcscf"), free_port()
    with ExitStack() as stack:
        ue, home = (stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
        for one in (ue, home):
            one.bind(("127.0.0.1", 0))
            one.settimeout(10)
        config = folder / "network.toml"
        text = (EXAMPLES / "kamailio.toml").read_text("utf-8").replace(":5060", f":{port}")
        config.write_text(text.replace("[hosts]", f'[hosts]\n"icscf.home1.net" = "127.0.0.1:{home.getsockname()[1]}"\n'))
        written = keyferry("kamailio", folder / "k", "--config", config, "--role", "pcscf", "--stderr", "--json")
        assert written.returncode == 0, written.stderr
        log = folder / "kamailio.log"
        process = stack.enter_context(started(folder / "k/pcscf.cfg", log))
        until(lambda: _answers(port), seconds=30, what="Kamailio listens")
        yield Between(port, ue, home)
        assert process.poll() is None
        said = log.read_text("utf-8", "replace")
        assert "exited by a signal" not in said
        assert CK not in said.lower()
        assert IK not in said.lower()


def _answers(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        probe.settimeout(0.2)
        me = "{}:{}".format(*probe.getsockname())
        probe.sendto(
            f"OPTIONS sip:127.0.0.1:{port} SIP/2.0\r\nVia: SIP/2.0/UDP {me};branch=z9hG4bKp\r\nMax-Forwards: 1\r\nFrom: <sip:p>;tag=1\r\n"
            f"To: <sip:p>\r\nCall-ID: p\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n".encode(), ("127.0.0.1", port),
        )  # fmt: skip
        try:
            return probe.recv(65535).startswith(b"SIP/2.0 200")
        except TimeoutError:
            return False


@pytest.mark.parametrize(
    "challenge",
    [
        f'Digest realm="home1.net", nonce="{NONCE}", algorithm=AKAv1-MD5, ck="{CK}", ik="{IK}", qop="auth,auth-int"',
        f'Digest ck="{CK}", ik="{IK}", realm="home1.net", nonce="{NONCE}", algorithm=AKAv1-MD5, qop="auth,auth-int"',
        f'Digest IK="{IK.upper()}",realm="home1.net",nonce="{NONCE}",Ck="{CK}",algorithm=AKAv1-MD5,qop="auth,auth-int"',
        f'Digest realm="home1.net", nonce="{NONCE}",\r\n  ck = "{CK}" ,\r\n\tik="{IK}", algorithm=AKAv1-MD5, qop="auth,auth-int"',
    ],
)
def test_keys_stay_here_in_any_order_case_and_folding_and_the_challenge_goes_on(between: Between, challenge: str) -> None:
    """TS 33.203 §6.1: SM6 holds RAND and AUTN only."""
    between.ask()
    got = between.answered(between.at_home(), "401 Unauthorized", f"WWW-Authenticate: {challenge}", "P-Charging-Vector: icid-value=1")
    assert CK not in got.lower()
    assert IK not in got.lower()
    assert "P-Charging-Vector" not in got
    (said,) = re.findall(r"(?m)^WWW-Authenticate: (.*)\r$", got)
    assert set(re.split(r", *(?=[a-z]+=)", said.removeprefix("Digest").strip())) == {
        'realm="home1.net"', f'nonce="{NONCE}"', "algorithm=AKAv1-MD5", 'qop="auth,auth-int"',
    }  # fmt: skip


@pytest.mark.parametrize(
    "challenges",
    [
        [f'Digest realm="a", nonce="{NONCE}", ck={CK}, ik={IK}'],
        [f'Digest realm="a", nonce="{NONCE}", ck="{CK}" ik="{IK}"'],
        [f'Digest realm="a", nonce="{NONCE}", c\\k="{CK}", i\\k="{IK}"'],
        [f'Digest realm="a\\", ck=\\"{CK}", nonce="{NONCE}"'],
        [f'Digest realm="a", nonce="{NONCE}", ck="{CK}", ck="x{IK}"'],
        [f'Digest realm="a", nonce="{NONCE}", ck="{CK}"', f'Digest realm="b", nonce="{NONCE}", ik="{IK}"'],
        [f'Digest realm="a", nonce="{NONCE}", ck="{CK},{IK}"'],
        [f'AKA ck="{CK}", ik="{IK}"'],
    ],
)
def test_what_cannot_be_read_for_certain_goes_on_without_a_challenge(between: Between, challenges: list[str]) -> None:
    between.ask()
    got = between.answered(between.at_home(), "401 Unauthorized", *(f"WWW-Authenticate: {each}" for each in challenges))
    assert got.startswith("SIP/2.0 401")
    assert CK not in got.lower()
    assert IK not in got.lower()
    assert "WWW-Authenticate" not in got


CHALLENGE = f'WWW-Authenticate: Digest realm="home1.net", nonce="{NONCE}", algorithm=AKAv1-MD5, ck="{CK}", ik="{IK}"'
OUTSIDE = [
    ((f'X-Keys: ck="{CK}"',), ""),
    ((f"X-Keys: a=b;Ik = {IK}",), ""),
    ((f'X-Keys: x;\r\n ck\r\n\t=\r\n "{CK}"',), ""),
    ((f'Authentication-Info: rspauth="1", ck="{CK}", ik="{IK}"',), ""),
    ((), f'v=0\r\nck="{CK}"\r\n'),
    ((), f"<keys ck='{CK.upper()}' ik='{IK}'/>"),
]


@pytest.mark.parametrize(("headers", "body"), OUTSIDE)
@pytest.mark.parametrize("challenges", [(), (CHALLENGE,)])
@pytest.mark.parametrize("status", ["401 Unauthorized", "200 OK", "403 Forbidden"])
def test_keys_in_another_place_than_the_challenge_are_answered_500(
    between: Between, status: str, challenges: tuple[str, ...], headers: tuple[str, ...], body: str
) -> None:
    """TS 33.203 §6.1, again: whatever the home network calls the header that it puts them into."""
    between.ask()
    got = between.answered(between.at_home(), status, *challenges, *headers, body=body)
    assert got.startswith("SIP/2.0 500"), got
    assert CK not in got.lower()
    assert IK not in got.lower()


def test_a_provisional_response_with_keys_goes_no_further(between: Between) -> None:
    between.ask()
    request = between.at_home()
    between.answer(request, "183 Session Progress", f"X-Keys: ck={CK}")
    between.answer(request, "403 Forbidden")
    got = ""
    while not (got.startswith("SIP/2.0 403") and between._is_of_last(got)):
        got = between.ue.recv(65535).decode()
        assert "X-Keys" not in got


def test_a_long_response_passes_unless_it_names_keys(between: Between) -> None:
    """Kamailio cannot change texts of more than 8,191 octets."""
    between.ask()
    request = between.at_home()
    between.answer(request, "401 Unauthorized", CHALLENGE, f"X-Long: {'x' * 9000}")
    assert between.answered(request, "200 OK", f"X-Long: {'x' * 9000}").startswith("SIP/2.0 200")


@pytest.mark.parametrize("where", ["X-Debug: {} and {}", 'Warning: 399 x "{}{}"', "X-Path: /{}/\r\n /{}/"])
def test_the_keys_of_a_challenge_are_made_zeros_wherever_else_they_stand(between: Between, where: str) -> None:
    between.ask()
    keys = CK.upper(), IK
    got = between.answered(between.at_home(), "401 Unauthorized", CHALLENGE, where.format(*keys), body="{}\r\n{}\r\n".format(*keys))
    assert got.startswith("SIP/2.0 401")
    assert "0" * 32 in got
    assert 'nonce="' in got
    assert CK not in got.lower()
    assert IK not in got.lower()


@pytest.mark.parametrize("headers", [("X-Click: https://x/?click=1&tick=2&pick=3",), ("Server: Kck/1", "X-Base64: YWJjZGVmck="), ()])
def test_words_that_only_look_like_keys_pass(between: Between, headers: tuple[str, ...]) -> None:
    between.ask()
    got = between.answered(between.at_home(), "401 Unauthorized", CHALLENGE, *headers, body="stick=1")
    assert got.startswith("SIP/2.0 401")
    assert all(header in got for header in (*headers, "stick=1", 'nonce="'))


def test_a_challenge_of_no_transaction_goes_no_further(between: Between) -> None:
    """One that is late, or sent again later: Kamailio's core would send it on as it is, by what Via says."""
    between.ask()
    request = between.at_home()
    other = re.sub(r"branch=z9hG4bK", "branch=z9hG4bKx", request, count=1)
    challenge = f'WWW-Authenticate: Digest realm="home1.net", nonce="{NONCE}", algorithm=AKAv1-MD5, ck="{CK}", ik="{IK}"'
    between.answer(other, "401 Unauthorized", challenge)
    assert between.answered(request, "403 Forbidden").startswith("SIP/2.0 403")


@pytest.mark.parametrize(
    "broken", ["no colon", "Content-Length: x", "CSeq: x", "Via: x", "X\x00Y: z", "Y: \x00", "Y: x\x00", ": x", "X\r\n : x"]
)
def test_a_challenge_with_a_header_that_kamailio_cannot_read_goes_no_further(between: Between, broken: str) -> None:
    """Its functions then see none of them, and remove nothing; its core logs what it stumbles over, where zeros stand for the keys."""
    for rows in ((broken, CHALLENGE), (CHALLENGE, broken), (CHALLENGE, f"{broken} ck={CK} {IK}")):
        between.ask()
        request = between.at_home()
        between.answer(request, "401 Unauthorized", *rows)
        assert between.answered(request, "403 Forbidden").startswith("SIP/2.0 403")


@pytest.mark.parametrize("status", ["200 OK", "407 Proxy Authentication Required", "403 Forbidden"])
def test_other_responses_carry_no_challenge(between: Between, status: str) -> None:
    between.ask()
    keys = f'Digest realm="a", ck="{CK}", ik="{IK}"'
    info = 'Authentication-Info: rspauth="1"'
    got = between.answered(between.at_home(), status, f"WWW-Authenticate: {keys}", f"Proxy-Authenticate: {keys}", info)
    assert CK not in got
    assert info in got


def test_the_home_network_gets_our_word_and_not_the_ues(between: Between) -> None:
    """TS 24.229 §5.2.2.1: what the home network believes of a P-CSCF it gets of no UE."""
    forged = (
        "Path: <sip:evil.example;lr>", "P-Visited-Network-ID: evil", "P-Charging-Vector: icid-value=evil",
        "P-Asserted-Identity: <sip:evil@x>",
        "Route: <sip:evil.example;lr>", "Service-Route: <sip:evil.example>", "Security-Client: evil",
    )  # fmt: skip
    between.ask(*forged, *(header.replace(": ", " : ").swapcase() for header in forged))
    got = between.at_home()
    assert "evil" not in got.lower()
    assert re.search(r"(?m)^Authorization: Digest .*, integrity-protected=\"no\"\r$", got)
    assert re.findall(r"(?m)^(Path|P-Visited-Network-ID|Require): (.*)\r$", got) == [
        ("Path", f"<sip:pcscf1.home1.net:{between.port};lr>"), ("Require", "path"), ("P-Visited-Network-ID", '"home1.net"'),
    ]  # fmt: skip
    assert re.search(r'(?m)^P-Charging-Vector: icid-value="[0-9a-f]{32}"\r$', got)
    between.answered(got, "403 Forbidden")


@pytest.mark.parametrize(
    ("headers", "authorization", "status"),
    [
        ((), CREDENTIALS + ', integrity-protected="yes"', "400"),
        ((), CREDENTIALS + ", Integrity-Protected = yes", "400"),
        ((f'Authorization: {CREDENTIALS}, integrity-protected="yes"',), CREDENTIALS, "400"),
        ((f"Authorization: {CREDENTIALS}",), CREDENTIALS, "400"),
        ((), CREDENTIALS.replace("u@", "u\0@") + ', integrity-protected="yes"', "400"),
        ((f'AUTHORIZATION\t: {CREDENTIALS}, INTEGRITY-PROTECTED="yes"',), "Basic x", "400"),
        (("Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKy",), CREDENTIALS, "400"),
        (("Require: sec-agree", "Security-Client: x"), CREDENTIALS, "420"),
        (("Proxy-Require: sec-agree",), CREDENTIALS, "420"),
        (("Proxy-Require: other",), CREDENTIALS, "420"),
    ],
)
def test_who_speaks_as_a_p_cscf_or_demands_what_is_not_there_is_refused(
    between: Between, headers: tuple[str, ...], authorization: str, status: str
) -> None:
    between.ask(*headers, authorization=authorization)
    got = between.at_ue()
    assert got.startswith(f"SIP/2.0 {status} "), got
    assert (status == "420") == ("\r\nUnsupported: " in got)
