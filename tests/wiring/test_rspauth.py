# SPDX-License-Identifier: Apache-2.0
"""Who may open the socket where Kamailio asks for rspauth."""

from __future__ import annotations

import os
import pwd

import pytest

from keyferry.config.kamailio import Kamailio
from keyferry.errors import StateError
from keyferry.wiring import rspauth


def test_it_is_kamailios_main_group_or_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert rspauth._group(Kamailio(), 0) is None
    assert rspauth._group(Kamailio(), nobody.pw_uid) == nobody.pw_gid
    assert rspauth._group(Kamailio(rspauth_group="12"), 0) == 12


def test_a_group_that_cannot_be_given_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    assert rspauth._group(Kamailio(rspauth_group=str(os.getegid())), 1) == os.getegid()
    with pytest.raises(StateError, match="usermod -aG"):
        rspauth._group(Kamailio(rspauth_group="54321"), 1)
