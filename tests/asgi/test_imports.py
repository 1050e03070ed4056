# SPDX-License-Identifier: Apache-2.0
"""What an application pays for its login: `pip install keyferry[asgi]` needs cryptography beside the standard library, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve()
SCRIPT = r"""
import importlib.abc, json, sys
ALLOWED = {"keyferry", "cryptography", "_cffi_backend"}
before, refused = set(sys.modules), []

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED | sys.stdlib_module_names:
            refused.append(name)
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())

import asyncio, hashlib
from keyferry.asgi import AuditLog, FailureLimits, Identity, SessionCookie, SimLogin, SimUser
from keyferry.protocol import digest
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.ims import keys
from keyferry.protocol.ims.key_record import KeyRecord, Offer

K_AS = Secret(bytes(32))
NAME = keys.key_id(K_AS, "home1.net")
RECORD = KeyRecord(NAME, "a.example", "u@home1.net", "r", ("sip:u@home1.net",), K_AS, 0.0, 9e9, superseded=False)

class Source:
    def offer(self, as_id): return Offer("ims-as-key", keys.digest_realm(as_id), "IMS-AS-key", handsets=False)
    async def lookup(self, identifier, as_id): return RECORD if identifier == NAME else None
    def lookup_now(self, identifier, as_id): return RECORD
    def protocol_key(self, record, ua_id): return keys.ua_key(record.k_as, ua_id)
    async def used(self, record): pass

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["user"].display_name.encode()})

async def call(login, *headers):
    sent = []
    async def receive(): return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message): sent.append(message)
    await login({"type": "http", "scheme": "https", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"",
                 "headers": [(b"host", b"a.example"), *headers], "client": ("192.0.2.1", 1)}, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"])

async def main():
    login = SimLogin(app, as_id="a.example", keys=Source(), user_id_key=bytes(32), session=SessionCookie(), limits=FailureLimits(),
                     open=("/health",), trusted_proxies=("127.0.0.1",), audit=sys.argv[1], hsts_seconds=60)
    status, headers = await call(login)
    challenge = digest.parse_challenge(headers[b"www-authenticate"].decode())
    ha1 = digest.hash_a1("SHA-256", NAME, challenge.realm, keys.digest_password(keys.ua_key(K_AS)))
    fields = dict(nonce=challenge.nonce, uri="/", cnonce="c" * 16, nc="00000001")
    response = digest.respond("SHA-256", ha1, method="GET", qop="auth", **fields)
    answer = digest.Credentials(NAME, challenge.realm, response=response, algorithm="SHA-256", qop="auth", **fields)
    second, headers = await call(login, (b"authorization", digest.build_credentials(answer).encode()))
    third, _ = await call(login, (b"cookie", headers[b"set-cookie"].partition(b";")[0]))
    wrong, _ = await call(login, (b"authorization", b"Digest x"))
    return [status, second, third, wrong]

statuses = asyncio.run(main())
loaded = set(sys.modules) - before
print(json.dumps({
    "statuses": statuses, "refused": refused,
    "foreign": sorted(n for n in loaded if n.partition(".")[0] not in ALLOWED | sys.stdlib_module_names),
    "ours": sorted(n for n in loaded if n.startswith("keyferry.")),
}))
"""


def test_the_middleware_runs_with_the_standard_library_and_cryptography(tmp_path: Path) -> None:
    """Whatever else is asked for is refused by an import hook, and would show."""
    script = tmp_path / "login.py"
    script.write_text(SCRIPT)
    source = str(HERE.parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r}); exec(open({str(script)!r}).read())", str(tmp_path / "audit")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["statuses"] == [401, 200, 200, 400]
    assert set(told["refused"]) <= {"org"}  # Jython's, for which pickle of Python 3.11 looks
    assert told["foreign"] == []
    folders = {name.split(".")[1] for name in told["ours"]}
    assert folders <= {"asgi", "errors", "protocol", "transports"}
    assert {name for name in told["ours"] if name.startswith("keyferry.transports.")} <= {"keyferry.transports.clock"}
    assert not [name for name in told["ours"] if ".sip" in name or ".frameworks" in name or "xml" in name]
    assert '"granted"' in (tmp_path / "audit").read_text()
