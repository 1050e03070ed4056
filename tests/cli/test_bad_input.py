# SPDX-License-Identifier: Apache-2.0
"""Bad input: one line that says what, where and what to do; 2 for usage and configuration, 1 for failure; never a traceback."""

from __future__ import annotations

import os
import random
import re
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from system.serving import EVENT_LIMIT, EXAMPLES, Lab, Served, keyferry, make_lab, serving, ue, until

LAB = (EXAMPLES / "lab.toml").read_text("utf-8")
UE = (EXAMPLES / "ue.toml").read_text("utf-8")
K = 'k = "465b5ce8b199b49faa5f0a2ee238a6bc"'
REMEDY = r"\. [A-Z].+"  # a further sentence: what to do


def _said(done: subprocess.CompletedProcess[str], status: int) -> str:
    """Return the one line on standard error of a command that ended as it should."""
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line


# ---- files


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[network]", "[network", r"is not TOML: .*\(at line \d+, column \d+\)"),
        ("home_domain", "home_domian", r"network: unknown key `home_domian`\. Did you mean `home_domain`\?"),
        ("[admin]", "[nothing_like_it]", r"top level: unknown key `nothing_like_it`\. docs/configuration\.md lists every key"),
        (K, 'k = "465b5ce8"', r"subscribers\[0\]\.k: not 16 to 32 octets in hexadecimal"),
        (K, f"{K[:-1]}00\"", rf"subscribers\[0\]\.k: is 17 octets long, milenage takes 16{REMEDY}"),
        (K, "k = 5", r"subscribers\[0\]\.k: not 16 to 32 octets in hexadecimal"),
        ('op = "', 'opc = "', r"subscribers\[0\]: .*exactly one of opc and op"),
        ('"127.0.0.1:5060"', '"127.0.0.1"', rf"pcscf\.listen: '127\.0\.0\.1' is not HOST:PORT{REMEDY}"),
        ("release = 6", "release = 4", r"scscf\.release: .*>= 5"),
        ('impi = "user2_private@home1.net"', 'impi = "user2"', r"subscribers\[1\]\.impi: .*user@realm"),
        ('as_id = "notes.home1.net"', 'as_id = "xcap.home1.net"', rf"application_servers\[1\]\.as_id: .* is there twice{REMEDY}"),
        ('"127.0.0.1:8444"', '"127.0.0.1:66000"', r"application_servers\[1\]\.listen_https: .* is not HOST:PORT"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_says_where(tmp_path: Path, old: str, new: str, said: str) -> None:
    """`serve` starts nothing and exits with 2."""
    file = tmp_path / "wrong.toml"
    assert old in LAB
    text = LAB.replace(old, new, 1)
    if "exactly one" in said:  # the first subscriber has opc already
        text = LAB.replace("\nopc = ", '\nop = "ff53bade17df5d4e793073ce9d7579fa"\nopc = ', 1)
    file.write_text(text, "utf-8")
    line = _said(keyferry("serve", "--config", file, "--state", tmp_path / "state"), 2)
    assert re.match(rf"keyferry: {re.escape(str(file))}:\d+: ", line), line
    assert re.search(said, line), line
    assert "465b5ce8" not in line
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (K, f"{K[:-1]}00\"", r"ue\.k: is 17 octets long, milenage takes 16"),
        ("transport", "transprot", r"ue: unknown key `transprot`\. Did you mean `transport`\?"),
        ('"udp"', '"sctp"', r"ue\.transport: .*'sctp'"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_of_a_ue_says_where(tmp_path: Path, old: str, new: str, said: str) -> None:
    """The same for `ue`."""
    file = tmp_path / "ue.toml"
    assert old in UE
    file.write_text(UE.replace(old, new, 1), "utf-8")
    line = _said(keyferry("ue", "register", "--config", file, "--state", tmp_path / "state"), 2)
    assert re.search(said, line), line


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """No file, a directory, bytes that are not UTF-8, no permission."""
    binary, closed = tmp_path / "binary.toml", tmp_path / "closed.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    closed.write_text(LAB)
    closed.chmod(0)
    cases = [
        (tmp_path / "absent.toml", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        (binary, "is not UTF-8"),
    ]
    if os.geteuid() != 0:  # nothing is closed to root
        cases.append((closed, "cannot be read: Permission denied"))
    for file, problem in cases:
        line = _said(keyferry("serve", "--config", file, "--state", tmp_path / "state"), 2)
        assert re.fullmatch(f"keyferry: {re.escape(f'{file}: {problem}')}{REMEDY}", line), line


def test_a_document_to_put_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """`ue put` reads its file before it asks anybody."""
    absent = tmp_path / "absent.xml"
    done = keyferry("ue", "put", "--config", EXAMPLES / "ue.toml", "--state", tmp_path / "state", "x", absent)
    assert _said(done, 2) == f"keyferry: {absent}: cannot be read: No such file or directory"


# ---- usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve"], "Missing option '--config'"),
        (["nonsense"], "No such command 'nonsense'"),
        (["serve", "--config", str(EXAMPLES / "lab.toml"), "--role", "mgcf"], "--role: 'mgcf' is not one of pcscf"),
        (["serve", "--config", str(EXAMPLES / "lab.toml"), "--log", "xml"], "--log: 'xml' is not text, json or none"),
        (
            ["keys", "derive", "--ck", "00", "--ik", "00", "--rand", "00", "--impi", "a@b", "--as", "b", "--realm", "b"],
            "--ck: is not 16 octets in hexadecimal",
        ),
    ],
)  # fmt: skip
def test_wrong_usage_exits_with_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    """As every command of a UNIX system does."""
    done = keyferry(*arguments, "--state", tmp_path / "state")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# ---- what is there already


def test_a_port_in_use_is_named(lab: Lab) -> None:
    """A SIP port and an HTTP port; exit code 1, and what was started is stopped."""
    for port, said in (("5060", f"udp:127.0.0.1:{lab.ports['5060']}: port in use"), ("8443", f"http:127.0.0.1:{lab.ports['8443']}")):
        kind = socket.SOCK_DGRAM if port == "5060" else socket.SOCK_STREAM
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", lab.ports[port]))
            if kind is socket.SOCK_STREAM:
                taken.listen()
            line = _said(keyferry("serve", "--config", lab.serve, "--state", lab.state, "--log", "none"), 1)
        assert line.startswith(f"keyferry: {said}"), line
        assert re.search("another port|configure another", line)
    with serving(lab.serve, lab.state) as served:
        assert served.health()["ok"] is True


def test_two_application_servers_at_one_sip_uri_must_listen_at_one_place(tmp_path: Path) -> None:
    """One SIP URI is one listener; with the same, both start (tests/system/test_shared_sip_uri.py)."""
    lab = make_lab(tmp_path, lambda text: text.replace("sip:notes-as.home1.net:5091", "sip:xcap-as.home1.net:5090"))
    line = _said(keyferry("serve", "--config", lab.serve, "--state", lab.state, "--log", "none"), 2)
    said = r"keyferry: \S+lab.toml:45: application_servers\[1\].listen_sip: is not that of xcap.home1.net, which has the same sip_uri"
    assert re.fullmatch(f"{said}{REMEDY}", line), line


def test_a_key_agent_whose_port_or_folder_is_not_its_own_says_so(tmp_path: Path) -> None:
    """Exit code 1; what was started is stopped, and a second try succeeds or fails alike."""
    text = (Path(__file__).parents[2] / "examples" / "agent.toml").read_text("utf-8")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        file = tmp_path / "agent.toml"
        file.write_text(text.replace(":5095", f":{port}"), "utf-8")
        for _ in range(2):
            line = _said(keyferry("agent", "--config", file, "--state", tmp_path / "state", "--log", "none"), 1)
            assert f"udp:127.0.0.1:{port}: port in use" in line
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    file.write_text(text.replace(":5095", ":0").replace("[agent]", f'[agent]\nsocket = "{open_to_all}/a.sock"', 1), "utf-8")
    line = _said(keyferry("agent", "--config", file, "--state", tmp_path / "state", "--log", "none"), 1)
    assert "could be replaced by another user" in line or "under 100 octets" in line


def test_a_second_server_on_the_same_state_is_refused(served: Served, lab: Lab, tmp_path: Path) -> None:
    """The first goes on."""
    other = tmp_path / "other"
    other.mkdir()
    line = _said(keyferry("serve", "--config", make_lab(other).serve, "--state", lab.state), 1)
    assert re.fullmatch(f"keyferry: {re.escape(str(lab.state))}: is being served by another process{REMEDY}", line)
    assert served.health()["ok"] is True


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda state: (state / "version").write_text("9\n"), r"state: was made by another version .*layout 9, this one knows 1"),
        (lambda state: state.chmod(0o755), r"state: may be entered by other users"),
        (lambda state: (state / "kek").unlink(), r"state/kek: is missing, and nothing sealed opens without it"),
        (lambda state: (state / "kek").chmod(0o644), r"state/kek: may be read by other users"),
        (lambda state: (state / "kek").write_text("no key\n"), r"state/kek: line 1 is no new kid and base64 of 64 octets"),
        (lambda state: (state / "hss.db").write_bytes(b"no database" * 1000), r"hss\.db"),
    ],
    ids=["version", "mode", "no-kek", "kek-mode", "kek-damaged", "database-damaged"],
)  # fmt: skip
def test_a_state_directory_that_cannot_be_used_is_named(tmp_path: Path, damage: object, said: str) -> None:
    """Exit code 1: the command was right, the state is not."""
    state = tmp_path / "state"
    card = ("--k", "00112233445566778899aabbccddeeff", "--opc", "ffeeddccbbaa99887766554433221100")
    made = keyferry("subscriber", "add", "--impi", "a@home1.net", "--impu", "sip:a@home1.net", *card, "--state", state)
    assert made.returncode == 0, made.stderr
    assert callable(damage)
    damage(state)
    line = _said(keyferry("serve", "--config", make_lab(tmp_path).serve, "--state", state, "--log", "none"), 1)
    assert re.search(said + ".*" + REMEDY, line), line


# ---- the network


def test_malformed_datagrams_and_streams_stop_no_listener(served: Served, lab: Lab) -> None:
    """RFC 3261 §16.3, §18.3: what is not SIP costs one message; every listener answers afterwards, and a UE registers."""
    chance = random.Random(3261)
    whole = _request("REGISTER")
    rubbish = [chance.randbytes(chance.choice((1, 7, 64, 900, 9000))) for _ in range(40)]
    rubbish += [whole[:length] for length in range(0, len(whole), 7)]
    rubbish += [whole.replace(b"Content-Length: 0", b"Content-Length: " + length) for length in (b"-1", b"99999999999", b"x")]
    rubbish += [b"", b"\r\n" * 50, b"SIP/2.0 200 OK\r\n\r\n", b"REGISTER sip:a SIP/2.0\r\n" + b"Via: ,\r\n" * 500 + b"\r\n", b"\x00" * 1300]
    for one in served.listen:
        _throw(one["proto"], one["port"], rubbish)
    for one in served.listen:
        if one["proto"] in ("udp", "tcp"):
            answer = until(lambda one=one: _answer(one["proto"], one["port"]), seconds=EVENT_LIMIT, what=f"an answer of {one}")  # type: ignore[misc]
            assert answer.startswith(b"SIP/2.0 ")
    assert served.health()["ok"] is True
    assert ue(lab, "register")["keys"]
    assert ue(lab, "get", "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml")["status"] == 200
    metrics = served.admin("/metrics")[1]
    assert not re.search(r'"internal-error"\} [1-9]', metrics)
    assert "sip_dropped" in metrics


def _throw(proto: str, port: int, rubbish: list[bytes]) -> None:
    if proto == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for data in rubbish:
                sock.sendto(data, ("127.0.0.1", port))
        return
    for data in rubbish[::5]:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                sock.sendall(data)
        except OSError:
            continue  # refused by a reset: its right
    if proto == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock, context.wrap_socket(sock) as tls:
            tls.sendall(rubbish[3] + b"\r\n\r\n")


def _answer(proto: str, port: int) -> bytes:
    """Return the answer to an OPTIONS, or nothing in half a second."""
    kind = socket.SOCK_DGRAM if proto == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.settimeout(0.5)
        sock.bind(("127.0.0.1", 0))
        sock.connect(("127.0.0.1", port))
        sock.sendall(_request("OPTIONS", sock.getsockname()[1], proto.upper()))
        try:
            return sock.recv(65_536)
        except TimeoutError:
            return b""


def _request(method: str, port: int = 5099, transport: str = "UDP") -> bytes:
    lines = (
        f"{method} sip:home1.net SIP/2.0",
        f"Via: SIP/2.0/{transport} 127.0.0.1:{port};branch=z9hG4bK{os.urandom(8).hex()};rport",
        "Max-Forwards: 70",
        "From: <sip:user1_public1@home1.net>;tag=1",
        "To: <sip:user1_public1@home1.net>",
        f"Call-ID: {os.urandom(8).hex()}",
        f"CSeq: 1 {method}",
        f"Contact: <sip:user1_public1@127.0.0.1:{port}>",
        'Authorization: Digest username="user1_private@home1.net",realm="home1.net",nonce="",uri="sip:home1.net",response=""',
        "Content-Length: 0",
        "",
        "",
    )
    return "\r\n".join(lines).encode()
