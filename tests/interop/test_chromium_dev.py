# SPDX-License-Identifier: Apache-2.0
"""Chromium as alice and as bob at an application of `keyferry dev`, through their proxies; and what a page of another origin gets."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from interop.peers import program
from lab.test_dev import developing, get

pytestmark = pytest.mark.interop

LIMIT = 60.0  # seconds
SHOP = '''
import json

seen = []
PAGE = b"""<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><pre id="seen"></pre><script>
async function run() {
  const seen = [];
  try {
    for (const [method, body] of [["GET", undefined], ["PUT", "milk"], ["POST", "x".repeat(200000)]]) {
      seen.push(await (await fetch("/who", {method, body})).text());
    }
  } catch (problem) { seen.push(String(problem)); }
  document.getElementById("seen").textContent = JSON.stringify(seen);
}
run();
</script>"""

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    user = scope["user"].public_identities[0]
    if scope["method"] != "HEAD":
        seen.append(f"{scope['method']} {scope['path']} {user}")
    answer = {"/page": PAGE, "/seen": json.dumps(seen).encode()}.get(scope["path"], f"{scope['method']} {size} {user}".encode())
    kind = b"text/html" if scope["path"] == "/page" else b"text/plain"
    fields = [(b"content-type", kind), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer})
'''
EVIL = """<!doctype html><meta charset="utf-8"><pre id="seen"></pre>
<img src="{app}img"><iframe src="{app}frame"></iframe>
<script>
async function run() {{
  const seen = [];
  for (const options of [{{method: "POST", mode: "no-cors", body: "all"}}, {{}}, {{method: "PUT", body: "all"}}, {{mode: "no-cors"}}]) {{
    try {{ const answer = await fetch("{app}transfer", options); seen.push(answer.type); }} catch (problem) {{ seen.push("failed"); }}
  }}
  document.getElementById("seen").textContent = JSON.stringify(seen);
}}
run();
</script>"""


def browse(ready: dict[str, Any], name: str, url: str, folder: Path) -> list[str]:
    """Open a page as a SIM; return what the page wrote down."""
    shown = Path(ready["state"]) / "network" / "proxy" / "proxy-app.test.pem"
    key = x509.load_pem_x509_certificate(shown.read_bytes()).public_key()
    spki = base64.b64encode(hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()).decode()
    command = [
        program("chromium"), "--headless", "--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else []),
        f"--user-data-dir={folder / name}", f"--ignore-certificate-errors-spki-list={spki}", "--disable-background-networking",
        f"--proxy-pac-url={ready['sims'][name]['pac']}", "--virtual-time-budget=10000", "--dump-dom", url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env={**os.environ, "HOME": str(folder)}, check=False)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout + done.stderr
    seen: list[str] = json.loads(html.unescape(found[1]) or "[]")
    return seen


def test_a_browser_is_whose_proxy_it_has_and_other_pages_are_nobody(tmp_path: Path) -> None:
    """Reads and writes of the application's own page are logged in; an image, a frame, a form's POST of another origin never arrive."""
    (tmp_path / "shop.py").write_text(SHOP, "utf-8")
    with developing(tmp_path, "--app", "shop:app") as ready:
        for name in ("alice", "bob"):
            user = f"sip:{name}@home1.net"
            assert browse(ready, name, f"{ready['app']}page", tmp_path) == [f"GET 0 {user}", f"PUT 4 {user}", f"POST 200000 {user}"]
        (tmp_path / "evil.html").write_text(EVIL.format(app=ready["app"]), "utf-8")
        told = browse(ready, "alice", f"file://{tmp_path}/evil.html", tmp_path)
        assert told == ["opaque", "failed", "failed", "opaque"]  # as a page sees it, refused or not
        arrived = json.loads(get({**ready, "app": f"{ready['app']}seen"}, "alice").text)
        assert {line.split()[1] for line in arrived} == {"/page", "/who", "/seen"}
