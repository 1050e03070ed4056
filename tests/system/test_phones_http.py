# SPDX-License-Identifier: Apache-2.0
"""A phone of today at a door without TLS, as `keyferry serve` opens it for the xcap APN (docs/phones.md)."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest

from asgi.handsets import AospPhone, Phone, SamsungPhone
from system.serving import free_port, make_lab, serving

KEYS = """
[[keys]]
identifier = "Gh/x+Q2k3w==@bsf.home1.net"
key = "{}"
impi = "user1_private@home1.net"
impus = ["sip:user1_public1@home1.net"]
"""


@pytest.mark.parametrize("kind", [AospPhone, SamsungPhone])
def test_a_phone_logs_in_over_plain_http_with_one_401(kind: type[Phone], tmp_path: Path) -> None:
    keys, key, port = tmp_path / "phones.toml", bytes(range(32)), free_port()
    keys.touch(0o600)
    keys.write_text(KEYS.format(key.hex()))
    added = f'app = "notes"\nstatic_keys = "{keys}"\nlisten_http = "127.0.0.1:{port}"\nhttp_networks = ["127.0.0.0/8"]\n#'
    lab = make_lab(tmp_path, lambda text: text.replace('app = "notes"', added))
    with serving(lab.serve, lab.state) as served:
        assert served.port("as", "notes.home1.net", "http") == port
        for listener, tls in ((port, False), (served.port("as", "notes.home1.net", "https"), True)):
            phone = kind(listener, "Gh/x+Q2k3w==@bsf.home1.net", key, host="notes.home1.net", tls=tls)
            for number in range(20):
                phone.request("PUT", "/a/~~/cp:rule%5B@id=%22x%22%5D", b"%d" % number)
                assert phone.request("GET", "/a?xmlns(cp=x)") == b"%d" % number
            assert (phone.statuses.count(401), phone.bootstrappings) == (1, 1)
        stranger = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        stranger.request("GET", "/", headers={"Host": "notes.home1.net"})
        answer = stranger.getresponse()
        assert (answer.status, "IMS-AS-key" in (answer.getheader("www-authenticate") or "")) == (401, False)
        stranger.close()
        assert "door-without-tls" in served.log.read_text()
        assert key.hex() not in served.log.read_text()
