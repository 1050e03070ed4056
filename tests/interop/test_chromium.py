# SPDX-License-Identifier: Apache-2.0
"""Chromium behind the door (RFC 7616): a page and its script, GET and PUT with If-Match by fetch; the page writes down what it saw."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from asgi.doorkit import Certificate, Echo
from asgi.stockclients import Site, site
from interop.peers import program
from keyferry.asgi.exchange import Receive, Scope, Send, respond
from keyferry.asgi.xcap import XcapApp
from keyferry.protocol.identity import AsId
from keyferry.protocol.xcap.usages import SIMSERVS, default_simservs
from keyferry.roles.xcap_server import XcapServer
from keyferry.stores.memory import MemoryDocumentStore
from system.serving import EXAMPLES

pytestmark = pytest.mark.interop

HOST = AsId("xcap.home1.net")
DOCUMENT = "/simservs.ngn.etsi.org/users/sip:alice@home1.net/simservs.xml"
LIMIT = 60.0  # seconds
PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><pre id="seen"></pre>
<script>
const seen = [];
async function ask(method, etag, body) {
  const headers = body ? {"Content-Type": TYPE} : {};
  if (etag) headers["If-Match"] = etag;
  // Not a relative URL: fetch refuses those of a page that was opened with credentials in its URL.
  const answer = await fetch(location.origin + PATH, {method, headers, body});
  seen.push([method, answer.status, await answer.text()]);
  return answer.headers.get("ETag");
}
async function run() {
  try {
    const first = await ask("GET");
    const second = await ask("PUT", first, BODY);
    await ask("PUT", first, BODY);
    if (await ask("GET") !== second || first === second) seen.push("the ETag is wrong");
  } catch (problem) { seen.push(String(problem)); }
  document.getElementById("seen").textContent = JSON.stringify(seen);
}
run();
</script>
"""


class PageAndDocuments(Echo):
    """The XCAP server, and one page that uses it."""

    def __init__(self, body: str) -> None:
        super().__init__()
        self._xcap = XcapApp(XcapServer(MemoryDocumentStore()))
        told = {"TYPE": SIMSERVS.mime, "PATH": DOCUMENT, "BODY": body}
        self._page = re.sub("TYPE|PATH|BODY", lambda found: json.dumps(told[found[0]]), PAGE).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        self.scopes.append(scope)
        if scope["path"].endswith("/page"):
            await respond(send, 200, self._page, "text/html")
        else:
            await self._xcap(scope, receive, send)


@pytest.mark.parametrize(
    ("algorithms", "qop", "chosen"),
    [
        (("SHA-256",), ("auth",), "SHA-256"),
        (("SHA-256", "MD5"), ("auth",), "SHA-256"),
        (("MD5",), ("auth",), "MD5"),
        (("SHA-256",), ("auth", "auth-int"), "SHA-256"),
    ],
    ids=["sha-256", "sha-256+md5", "md5", "auth-int"],
)
async def test_a_page_reads_and_writes_its_users_document(
    algorithms: tuple[str, ...], qop: tuple[str, ...], chosen: str, tmp_path: Path
) -> None:
    """RFC 7616 §3.6: one 401 for the page, then its script is logged in: GET, PUT with If-Match 200, the same again 412."""
    body = (EXAMPLES / "simservs.xml").read_text()
    app = PageAndDocuments(body)
    async with site(tmp_path, HOST, app=app, algorithms=algorithms, qop=qop) as at:
        seen = await _open(at, at.password, tmp_path)
        assert seen[:2] == [["GET", 200, default_simservs().decode()], ["PUT", 200, ""]]
        assert seen[2][:2] == ["PUT", 412]
        assert seen[3:] == [["GET", 200, body]]
        assert at.statuses == [401, 200, 200, 200, 412, 200]
        assert {(entry.algorithm, entry.qop) for entry in at.log[1:]} == {(chosen, "auth")}


async def test_credentials_go_unasked_only_below_the_folder_of_the_first_page(tmp_path: Path) -> None:
    """RFC 7616 §3.3, domain: without it a browser guesses; documents in another folder cost one more 401."""
    async with site(tmp_path, HOST, app=PageAndDocuments((EXAMPLES / "simservs.xml").read_text())) as at:
        await _open(at, at.password, tmp_path, "/deep/page")
        assert at.statuses == [401, 200, 401, 200, 200, 412, 200]


async def test_a_wrong_password_opens_nothing(tmp_path: Path) -> None:
    """A window would ask for another one; headless, the navigation ends without a page."""
    app = PageAndDocuments("")
    async with site(tmp_path, HOST, app=app) as at:
        assert "seen" not in await _dump(at, "wrong", tmp_path)
        assert set(at.statuses) == {401}
        assert app.scopes == []


async def _open(at: Site, password: str, folder: Path, page: str = "/page") -> list[Any]:
    dom = await _dump(at, password, folder, page)
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom
    seen: list[Any] = json.loads(html.unescape(found[1]))
    return seen


async def _dump(at: Site, password: str, folder: Path, page: str = "/page") -> str:
    """Return the page as it is once its script is done."""
    user, port = quote(at.user, safe=""), at.url.rpartition(":")[2]
    process = await asyncio.create_subprocess_exec(
        program("chromium"), "--headless", "--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else []),
        f"--user-data-dir={folder / 'profile'}", f"--ignore-certificate-errors-spki-list={_spki(at.certificate)}",
        f"--host-resolver-rules=MAP {HOST} 127.0.0.1", "--no-proxy-server", "--disable-background-networking",
        "--virtual-time-budget=10000", "--dump-dom", f"https://{user}:{quote(password, safe='')}@{HOST}:{port}{page}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "HOME": str(folder)},
    )  # fmt: skip
    try:
        out, errors = await asyncio.wait_for(process.communicate(), LIMIT)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return out.decode()


def _spki(certificate: Certificate) -> str:
    """Return the hash of the one public key that is to be trusted."""
    key = x509.load_pem_x509_certificate(certificate.pem.read_bytes()).public_key()
    return base64.b64encode(hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()).decode()
