# SPDX-License-Identifier: Apache-2.0
"""Two phones as test instruments: what their Ut stacks do with HTTP and Digest, written from the table of their behaviour.

They are narrow on purpose. One (`AospPhone`) reads the last challenge, strips all white space, splits at "," and "=", counts in decimal,
ignores `stale` and takes every 401 for the end of its key. The other (`SamsungPhone`) reads the first challenge, needs a qop, knows MD5
alone, honours `stale`, and never asks again after a 403.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import secrets
import ssl
from dataclasses import dataclass, field
from typing import ClassVar


class PhoneGaveUp(Exception):
    """What the phone's user sees: no settings over XCAP."""


@dataclass
class Phone:
    """One SIM in one phone: its B-TID and Ks_NAF come from somewhere else."""

    port: int
    btid: str
    ks_naf: bytes
    host: str = "localhost"
    tls: bool = True
    bootstrappings: int = 0  # AKA runs: each costs an SQN and seconds
    statuses: list[int] = field(default_factory=list)
    _challenge: dict[str, str] = field(default_factory=dict)
    _count: int = 0

    agent: ClassVar[str] = "3gpp-gba"

    def request(self, method: str, target: str, body: bytes = b"") -> bytes:
        """Return the body of a 200 or 201, after at most two tries. Raises PhoneGaveUp."""
        for _ in range(3):
            status, answer, headers = self._exchange(method, target, body)
            self.statuses.append(status)
            if status in {200, 201}:
                self._take_info(headers)
                return answer
            if status != 401:
                self._refused(status)
            self._take_challenge(headers)
        raise PhoneGaveUp("401 again and again")

    def _exchange(self, method: str, target: str, body: bytes) -> tuple[int, bytes, http.client.HTTPMessage]:
        connection = self._connection()
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", self.host)  # without the port
        connection.putheader("User-Agent", self.agent)
        connection.putheader("Accept-Encoding", "")
        connection.putheader("X-3GPP-Intended-Identity", f'"sip:{self.btid[:4]}@home1.net"')
        if self._challenge:
            connection.putheader("Authorization", self._authorization(method, target))
        if body:
            connection.putheader("Content-Type", "application/xcap-el+xml")
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        answer = connection.getresponse()
        content, status, headers = answer.read(), answer.status, answer.msg
        connection.close()  # a new one for each request
        return status, content, headers

    def _connection(self) -> http.client.HTTPConnection:
        if not self.tls:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # every certificate, as the phone does
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=trusting)

    def _authorization(self, method: str, target: str) -> str:
        self._count += 1
        got, nc, cnonce = self._challenge, self._nc(), secrets.token_hex(8)
        ha1 = _md5(f"{self.btid}:{got['realm']}:{base64.b64encode(self.ks_naf).decode()}")
        response = _md5(f"{ha1}:{got['nonce']}:{nc}:{cnonce}:{got['qop']}:{_md5(f'{method}:{target}')}")
        return (
            f'Digest username="{self.btid}", realm="{got["realm"]}", nonce="{got["nonce"]}", uri="{target}", response="{response}", '
            f'algorithm={got["algorithm"]}, qop={got["qop"]}, nc={nc}, cnonce="{cnonce}"'
        )

    def _bootstrap(self) -> None:
        self.bootstrappings += 1

    def _nc(self) -> str:
        return f"{self._count:08x}"

    def _refused(self, status: int) -> None:
        raise PhoneGaveUp(f"{status}")

    def _take_challenge(self, headers: http.client.HTTPMessage) -> None:
        raise NotImplementedError

    def _take_info(self, headers: http.client.HTTPMessage) -> None:
        del headers


class AospPhone(Phone):
    """AOSP's ImsStack."""

    def _take_challenge(self, headers: http.client.HTTPMessage) -> None:
        value = headers.get_all("WWW-Authenticate", [""])[-1]
        got = _torn(value.replace("Digest", "", 1))
        if "3GPP-bootstrapping" not in got.get("realm", ""):
            raise PhoneGaveUp("no GBA")
        got["realm"] = got["realm"].split(";")[0]
        self._bootstrap()  # whatever `stale` says
        self._challenge, self._count = {"algorithm": "MD5", "qop": "auth", **got}, 0

    def _take_info(self, headers: http.client.HTTPMessage) -> None:
        value = headers.get("Authentication-Info")
        if value and (following := _torn(value).get("nextnonce")):
            self._challenge["nonce"], self._count = following, 0

    def _nc(self) -> str:
        return f"{self._count:08d}"  # decimal


class SamsungPhone(Phone):
    """The other vendor's stack."""

    agent: ClassVar[str] = "SAMSUNG-IMS/6.0 3GPP-gba"
    realm_part: ClassVar[int | None] = 0  # which of a list it takes; None: all of it
    _never_again = False

    def request(self, method: str, target: str, body: bytes = b"") -> bytes:
        """Return the body, unless a 403 has ended everything until the next boot."""
        if self._never_again:
            raise PhoneGaveUp("403 before")
        return super().request(method, target, body)

    def _refused(self, status: int) -> None:
        self._never_again = status == 403
        super()._refused(status)

    def _take_challenge(self, headers: http.client.HTTPMessage) -> None:
        value = headers.get_all("WWW-Authenticate", [""])[0]
        got = {name.strip().lower(): text.strip(' "') for name, _, text in (part.partition("=") for part in value[7:].split(","))}
        if got["algorithm"].upper() not in {"MD5", "MD5-SESS"}:
            raise PhoneGaveUp("algorithm")
        got["qop"] = got["qop"].split(",")[0]  # a KeyError is the crash that it is there
        if "3GPP-bootstrapping" not in got["realm"]:
            self.ks_naf = base64.b64decode(b"test")  # plain Digest with a password of the profile
        if self.realm_part is not None:
            got["realm"] = got["realm"].split(";")[self.realm_part]
        if got.get("stale") != "true":
            self._bootstrap()
        self._challenge, self._count = got, 0


def _torn(value: str) -> dict[str, str]:
    """All white space away, then apart at every comma, then at every "=": what has one inside loses its end."""
    parts = ["".join(value.split())][0].split(",")
    return {words[0]: words[1].strip('"') for words in (part.split("=") for part in parts) if len(words) > 1}


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
