# SPDX-License-Identifier: Apache-2.0
"""The secrets of `keyferry proxy`: one for each party, so that what one learns opens nothing of another (TS 33.222 §6)."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyferry.client.upstream import Address
from keyferry.errors import ConfigError
from keyferry.protocol.identity import AsId
from keyferry.wiring.proxy_secrets import parse_secret_files, read_secret, read_secrets

ONE, TWO = AsId("one.home1.net"), AsId("two.home1.net")
BOTH = {ONE: Address("127.0.0.1", 8001), TWO: Address("127.0.0.1", 8002)}


def secret_file(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_secret_is_read_whole_and_kept_from_others(tmp_path: Path) -> None:
    file = secret_file(tmp_path / "secret", "s" * 32 + "\n")
    secret = read_secret(file)
    assert secret.reveal() == b"s" * 32
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="everybody"):
        read_secret(file)
    file.chmod(0o600)
    for text in ("short", "a b" * 10, "s" * 300, ""):
        file.write_text(text)
        with pytest.raises(ConfigError, match="16 to 256"):
            read_secret(file)


def test_a_file_is_for_the_server_of_its_name() -> None:
    given = [f"{ONE}=/run/one", f"{TWO}=/run/a=b"]
    assert parse_secret_files(given, [ONE, TWO], endpoint=True) == {ONE: Path("/run/one"), TWO: Path("/run/a=b")}
    assert parse_secret_files(given[:1], [ONE, TWO], endpoint=False) == {ONE: Path("/run/one")}
    assert parse_secret_files([], [ONE], endpoint=False) == {}


@pytest.mark.parametrize("text", ["secret", "/run/secret", "/run/a=b", "./a=b"])
def test_of_one_server_the_name_may_be_left_out(text: str) -> None:
    assert parse_secret_files([text], [ONE], endpoint=False) == {ONE: Path(text)}


@pytest.mark.parametrize(
    ("given", "names", "endpoint", "says"),
    [
        (["/run/s"], [ONE, TWO], False, "for each, with files that differ"),
        (["/run/s"], [ONE], True, "--auth-request-secret-file FILE for nginx"),
        (["/run/s"], [], True, "Give --auth-request-secret-file /run/s"),
        (["/run/s"], [], False, "there is none"),
        ([f"{TWO}=/run/s"], [ONE], False, f"no --upstream is for '{TWO}'"),
        (["=/run/s"], [ONE], False, "no --upstream is for ''"),
        ([f"{ONE}=/run/s", "/run/t"], [ONE], False, f"second one for {ONE}"),
        ([f"{ONE}=/run/s", f"{ONE}=/run/s"], [ONE, TWO], False, f"second one for {ONE}"),
    ],
)
def test_a_file_for_nobody_for_all_or_twice_is_refused(given: list[str], names: list[AsId], endpoint: bool, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_secret_files(given, names, endpoint=endpoint)
    assert says in str(refused.value)


def test_two_parties_never_have_the_same_secret(tmp_path: Path) -> None:
    """Whatever their files are called."""
    a, again, b = (secret_file(tmp_path / name, text * 32) for name, text in (("a", "a"), ("again", "a"), ("b", "b")))
    found = read_secrets({ONE: a, TWO: b}, None, BOTH)
    assert ({name: secret.reveal() for name, secret in found.behind.items()}, found.nginx) == ({ONE: b"a" * 32, TWO: b"b" * 32}, None)
    for files, endpoint in (({ONE: a, TWO: a}, None), ({ONE: a, TWO: again}, None), ({ONE: a}, again), ({ONE: b, TWO: a}, a)):
        with pytest.raises(ConfigError, match="holds the secret of --") as refused:
            read_secrets(files, endpoint, BOTH)
        assert "aaaa" not in str(refused.value)
    assert set(read_secrets({ONE: a, TWO: again}, b, dict.fromkeys(BOTH, BOTH[ONE])).behind) == {ONE, TWO}  # one server, two names
