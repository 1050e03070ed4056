# SPDX-License-Identifier: Apache-2.0
"""`keyferry ue get`, `put`, `delete` against an application of one's own: large bodies, pipes, conditions, exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from system.serving import Lab, environment, keyferry, make_lab, serving, ue

SHELF = """
import hashlib

stored = {}

async def app(scope, receive, send):
    path, headers = scope["path"], dict(scope["headers"])
    old = stored.get(path)
    body, wanted, status, answer = b"", headers.get(b"if-match"), 200, b""
    tag = b'"%s"' % hashlib.sha256(old).hexdigest()[:8].encode() if old is not None else b""
    if scope["method"] == "PUT":
        more = True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
    if wanted not in (None, tag) or (headers.get(b"if-none-match") == b"*" and old is not None):
        status = 412
    elif scope["method"] == "PUT":
        stored[path], status = body, 201 if old is None else 204
    elif old is None:
        status, answer = 404, b"no such thing"
    elif headers.get(b"if-none-match") == tag:
        status = 304
    elif scope["method"] == "DELETE":
        stored.pop(path)
    else:
        answer = old
    fields = [(b"content-length", b"%d" % len(answer))] if status not in (204, 304) else []
    await send({"type": "http.response.start", "status": status, "headers": [*fields, (b"etag", tag)]})
    await send({"type": "http.response.body", "body": answer if scope["method"] != "HEAD" else b""})
"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, str]]:
    """Serve an application that keeps what it gets, with a UE registered; return the lab and its URL."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "shelf.py").write_text(SHELF, "utf-8")
    lab = make_lab(folder, lambda text: text.replace('app = "notes" ', 'app = "shelf:app" '))
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{folder}:{before}"
    try:
        with serving(lab.serve, lab.state):
            ue(lab, "register")
            yield lab, f"https://notes.home1.net:{lab.ports['8444']}"
    finally:
        os.environ["PYTHONPATH"] = before


def run(lab: Lab, command: str, *arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return keyferry("ue", command, "--config", lab.ue, "--state", lab.state, *arguments, stdin=stdin)


def test_a_large_file_goes_and_comes_back_octet_for_octet(shelf: tuple[Lab, str], tmp_path: Path) -> None:
    lab, url = shelf
    (tmp_path / "large").write_bytes(os.urandom(5_000_000))
    put = run(lab, "put", f"{url}/large", tmp_path / "large", "--json")
    assert json.loads(put.stdout) == {"ok": True, "status": 201, "etag": "", "octets": 0, "body": ""}
    got = run(lab, "get", f"{url}/large", "-o", tmp_path / "again", "--json")
    tag = hashlib.sha256((tmp_path / "large").read_bytes()).hexdigest()[:8]
    assert json.loads(got.stdout) == {"ok": True, "status": 200, "etag": f'"{tag}"', "octets": 5_000_000, "body": None}
    assert (tmp_path / "again").read_bytes() == (tmp_path / "large").read_bytes()
    assert put.stderr == got.stderr == ""  # no progress where nobody looks


def test_pipes_at_both_ends(shelf: tuple[Lab, str], tmp_path: Path) -> None:
    lab, url = shelf
    assert run(lab, "put", f"{url}/pipe", "-", stdin="through a pipe").returncode == 0
    assert run(lab, "get", f"{url}/pipe").stdout == run(lab, "get", f"{url}/pipe", "-o", "-").stdout == "through a pipe"
    assert json.loads(run(lab, "get", f"{url}/pipe", "--json").stdout)["body"] == "through a pipe"


def test_conditions_and_what_to_do_when_they_fail(shelf: tuple[Lab, str], tmp_path: Path) -> None:
    """RFC 9110 §13.1; the quotes of an ETag may be left to us."""
    lab, url = shelf
    note = tmp_path / "note"
    note.write_text("one")
    assert run(lab, "put", f"{url}/note", note, "--if-none-match", "*").stdout == "201 Created\n"
    again = run(lab, "put", f"{url}/note", note, "--if-none-match", "*")
    assert again.returncode == 1
    assert "412" in again.stdout
    assert "get it again" in again.stderr
    tag = json.loads(run(lab, "get", f"{url}/note", "--json").stdout)["etag"]
    unchanged = run(lab, "get", f"{url}/note", "--if-none-match", tag.strip('"'), "-o", note)
    assert (unchanged.returncode, note.read_text()) == (0, "one")
    assert run(lab, "put", f"{url}/note", note, "--if-match", '"other"').returncode == 1
    assert run(lab, "put", f"{url}/note", note, "--if-match", tag).returncode == 0
    assert run(lab, "delete", f"{url}/note", "--if-match", "other").returncode == 1
    assert run(lab, "delete", f"{url}/note", "--if-match", tag).returncode == 0
    gone = run(lab, "get", f"{url}/note", "-o", note)
    assert (gone.returncode, note.read_text()) == (1, "one")
    assert "404" in gone.stdout
    assert "no such thing" in gone.stdout


def test_what_is_wrong_is_said_before_anything_is_sent(shelf: tuple[Lab, str], tmp_path: Path) -> None:
    lab, url = shelf
    for arguments, said in (
        (("put", f"{url}/x", tmp_path / "absent"), "cannot be read"),
        (("put", f"{url}/x", tmp_path), "no regular file"),
        (("get", "http://notes.home1.net/"), "not an https URL"),
        (("get", f"{url}/x", "--if-match", "a\nb"), "no entity tag"),
    ):
        done = run(lab, *arguments)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
    dead = run(lab, "get", "https://notes.home1.net:9/")
    assert dead.returncode == 1
    assert "ConnectError" in dead.stderr


def test_on_a_terminal_a_large_body_has_a_progress_bar(shelf: tuple[Lab, str], tmp_path: Path) -> None:
    lab, url = shelf
    (tmp_path / "large").write_bytes(bytes(3_000_000))
    ours, theirs = pty.openpty()
    files = ["--config", str(lab.ue), "--state", str(lab.state), f"{url}/bar", str(tmp_path / "large")]
    command = [sys.executable, "-m", "keyferry", "ue", "put", *files]
    terminal = {**environment(), "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=terminal) as process:
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 4096):
                shown += block
        except OSError:  # Linux's word for the end of a terminal
            pass
        assert process.stdout is not None
        assert process.stdout.read() == b"201 Created\n"
    os.close(ours)
    assert re.search(rb"PUT large.*3\.0.*MB", shown)
