# SPDX-License-Identifier: Apache-2.0
"""What `keyferry proxy` refuses before it listens; that it works is in tests/system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from keyferry.cli.app import main


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--upstream: is missing"),
        (["--upstream", "notes"], "is not NAME=URL"),
        (["--upstream", "127.0.0.1=http://127.0.0.1:1"], "--upstream"),
        (["--upstream", "n.home1.net=ftp://127.0.0.1"], "is neither"),
        (["--upstream", "n.home1.net=https://bücher.example", "--host", "upstream"], "is neither"),
        (["--upstream", "n.home1.net=http://127.0.0.1/path"], "has a path"),
        (["--upstream", "n.home1.net=http://10.0.0.1"], "--plain-upstream"),
        (["--upstream", "n.home1.net=http://127.0.0.1:99999"], "is not a URL"),
        (["--upstream", "n.home1.net=http://127.0.0.1:1"], "no keys come in for n.home1.net"),
        (["--upstream", "n.home1.net=http://127.0.0.1:1", "--upstream", "n.home1.net=http://127.0.0.1:2"], "twice"),
        (["--upstream", "n.home1.net=http://127.0.0.1:1", "--listen", "x"], "is not HOST:PORT"),
        (["--upstream", "n.home1.net=http://127.0.0.1:1", "--host", "x"], "--host"),
        (["--upstream", "n.home1.net=http://127.0.0.1:1", "--certificate", "/none"], "/none"),
        (["--upstream", "n.home1.net=http://127.0.0.1:1", "--key", "/none"], "--certificate"),
        (["--upstream", "n.home1.net=http://127.0.0.1:1", "--secret-file", "/none"], "/none"),
        (["--upstream", "n.home1.net=http://127.0.0.1:1", "--user-id-header", "X-3GPP-Asserted-Identity"], "--user-id-header"),
        (["--auth-request", "unix:/tmp/x"], "--name"),
        (
            [
                *("--upstream", "n.home1.net=http://127.0.0.1:1", "--upstream", "m.home1.net=http://127.0.0.1:2"),
                *("--secret-file", "/run/secret"),
            ],
            "does not say for which server",
        ),
        (["--upstream", "n.home1.net=http://127.0.0.1:1", "--auth-request-secret-file", "/none"], "goes with --auth-request"),
        (["--auth-request", "127.0.0.1:0", "--name", "n.home1.net"], "--auth-request-secret-file"),
        (["--log", "x"], "--log"),
    ],
)
def test_what_cannot_be_meant_says_what_to_do(
    tmp_path: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["keyferry", "proxy", "--state", str(tmp_path / "state"), *arguments])
    monkeypatch.delenv("KEYFERRY_AGENT", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in {1, 2}
    assert says in " ".join(capfd.readouterr().err.split())
