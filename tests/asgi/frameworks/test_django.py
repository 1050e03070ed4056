# SPDX-License-Identifier: Apache-2.0
"""Django under its ASGI handler behind SimLogin, in a process of its own, served by granian."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from asgi.doorkit import Client, Pki, record
from asgi.frameworks.browsing import ALICE, ALICE_ID
from asgi.stockclients import HOST
from loopback import free_port

ROOT = Path(__file__).resolve().parents[3]
SITE = """
import django
from django.conf import settings

settings.configure(
    SECRET_KEY="x", DEBUG_PROPAGATE_EXCEPTIONS=True, ALLOWED_HOSTS=["localhost"], ROOT_URLCONF=__name__, USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.db"}},
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "keyferry.asgi.frameworks.django.SimUserMiddleware",
    ],
    AUTHENTICATION_BACKENDS=["django.contrib.auth.backends.RemoteUserBackend"],
)
django.setup()

from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.http import JsonResponse
from django.urls import path

from asgi.doorkit import FakeKeys, record
from keyferry.asgi import SimLogin


def told(request, user):
    return JsonResponse([user.get_username(), user.is_authenticated, request.sim_user.public_identities], safe=False)


def me(request):
    return told(request, request.user)


async def later(request):
    return told(request, await request.auser())


urlpatterns = [path("me", me), path("later", later), path("open/me", me), path("open/later", later)]
if __name__ == "__main__":
    call_command("migrate", verbosity=0)
app = SimLogin(get_asgi_application(), as_id="localhost", keys=FakeKeys(record(as_id="localhost")), open=("/open",))
"""


def test_the_user_is_djangos_remote_user(tmp_path: Path) -> None:
    """Sync and async views; what a client says of itself is not heard; an open path ends Django's own session."""
    held, pki = record(as_id=HOST), Pki(tmp_path)
    certificate = pki.issue(HOST, "server")
    (tmp_path / "notes_site.py").write_text(SITE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests", tmp_path)))}
    subprocess.run([sys.executable, "notes_site.py"], cwd=tmp_path, env=environment, check=True, timeout=120)
    port = free_port()
    command = ["-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port), "--no-access-log"]
    command += ["--ssl-certificate", str(certificate.pem), "--ssl-keyfile", str(certificate.pem), "notes_site:app"]
    server = subprocess.Popen(
        [sys.executable, *command], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line)
            if "Started worker" in line:
                break
        assert server.poll() is None, lines
        browse(f"https://{HOST}:{port}", pki, Client(held))
    finally:
        server.terminate()
        print(server.communicate(timeout=30)[0])  # shown where the test fails


def browse(url: str, pki: Pki, client: Client) -> None:
    transport = httpx.HTTPTransport(verify=pki.trust(), retries=5)  # the worker may still be loading
    spoof = {"Remote-User": "root"}
    auth = httpx.DigestAuth(client.held.key_id, client.password.reveal().decode())
    expected: list[Any] = [ALICE_ID, True, [ALICE, "tel:+15551234"]]
    with httpx.Client(transport=transport, base_url=url, timeout=60, trust_env=False) as site:
        for path in ("/me", "/later"):
            assert site.get(path).status_code == 401
            assert site.get(path, auth=auth, headers=spoof).json() == expected
            assert site.get(f"/open{path}", headers=spoof).json() == ["", False, []]
