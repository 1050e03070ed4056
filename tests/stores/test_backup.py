# SPDX-License-Identifier: Apache-2.0
"""What a backup holds, what it must not hold, and that it opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyferry.errors import StateError, StoreError
from keyferry.ports import Document
from keyferry.stores.backup import back_up
from keyferry.stores.database import Database
from keyferry.stores.sqlite.documents import SqliteDocumentStore
from keyferry.stores.sqlite.keys import SqliteKeyStore
from keyferry.stores.state_dir import StateDir, open_state
from stores.first_nonces import BEGAN
from stores.made import AS_ID, NOW, PUSHER, REALM, CountedRandom, push, pushed_key


async def filled(state: StateDir) -> str:
    """Give a state directory a document, a key and a transport key; return the name of its key store."""
    state.isc_keys("scscf1.home1.net", "xcap.home1.net")
    state.user_id_key(AS_ID)
    for name in ("scscf", "agent", "ue"):
        Database(state.path(f"{name}.db")).close()
    with Database(state.path("as-xcap.home1.net.db")) as database:
        store = SqliteKeyStore(database, state.keyring, now=BEGAN, skew=0)
        await store.apply(push(1, "a"), pusher=PUSHER, realm=REALM, now=NOW)
        documents = SqliteDocumentStore(database)
        await documents.put(
            "simservs.ngn.etsi.org", "sip:a@home1.net", "simservs.xml", Document(b"<simservs/>", "1"), expect=lambda _: None
        )
        return store.store_id


async def test_documents_and_what_is_unique_are_kept_and_what_passes_is_not(tmp_path: Path) -> None:
    """A restored AS is one that lost its keys: another store, which gets them again; and no octet of them is in the file."""
    with open_state(tmp_path / "state", random=CountedRandom()) as state:
        store_id = await filled(state)
        sealed = state.path("as-xcap.home1.net.db").read_bytes()
        held = back_up(state, tmp_path / "backup")
        user_ids = state.user_id_key(AS_ID)
    assert held == ["as-xcap.home1.net.db", "isc/scscf1.home1.net--xcap.home1.net", "user-ids", "version"]
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "backup").rglob("*") if path.name not in {"version"})
    name = pushed_key("a").key_id.encode()
    assert name in sealed
    assert name not in (tmp_path / "backup" / "as-xcap.home1.net.db").read_bytes()
    (tmp_path / "backup" / "kek").write_bytes((tmp_path / "state" / "kek").read_bytes())
    (tmp_path / "backup" / "kek").chmod(0o600)
    with open_state(tmp_path / "backup", random=CountedRandom()) as restored:
        assert restored.user_id_key(AS_ID) == user_ids
        with Database(restored.path("as-xcap.home1.net.db")) as database:
            assert SqliteKeyStore(database, restored.keyring, now=BEGAN, skew=0).store_id != store_id
            found = await SqliteDocumentStore(database).get("simservs.ngn.etsi.org", "sip:a@home1.net", "simservs.xml")
            assert found is not None
            assert found.body == b"<simservs/>"


async def test_the_keys_of_ipsec_pairs_are_kept(tmp_path: Path) -> None:
    """They cannot be got again from anywhere but the other machine."""
    with open_state(tmp_path / "state", random=CountedRandom()) as state:
        (tmp_path / "state" / "ipsec").mkdir(mode=0o700)
        (tmp_path / "state" / "ipsec" / "a--b.psk").write_text("c2VjcmV0\n")
        assert "ipsec/a--b.psk" in back_up(state, tmp_path / "backup")


async def test_nothing_is_written_over(tmp_path: Path) -> None:
    with open_state(tmp_path / "state", random=CountedRandom()) as state:
        back_up(state, tmp_path / "backup")
        with pytest.raises(StateError, match="is there already"):
            back_up(state, tmp_path / "backup")
        with pytest.raises(StateError, match="cannot be written"):
            back_up(state, tmp_path / "no" / "such" / "place")


async def test_a_copy_within_what_is_copied_is_refused(tmp_path: Path) -> None:
    """It would go into itself for ever. Beside it, as `keyferry-admin backup NAME` has it, is another thing."""
    with open_state(tmp_path / "state", random=CountedRandom()) as state:
        state.isc_keys("scscf1.home1.net", "xcap.home1.net")
        with pytest.raises(StateError, match="is within what is to be copied"):
            back_up(state, state.root / "isc" / "copy")
        assert back_up(state, state.root / "copy") == ["isc/scscf1.home1.net--xcap.home1.net", "version"]
    assert [entry.name for entry in (tmp_path / "state" / "isc").iterdir()] == ["scscf1.home1.net--xcap.home1.net"]


async def test_a_copy_that_fails_leaves_no_secret_behind(tmp_path: Path) -> None:
    """Transport keys and private keys are copied first; a database that is none comes last. The next attempt finds its place free."""
    with open_state(tmp_path / "state", random=CountedRandom()) as state:
        await filled(state)
        state.path("hss.db").write_bytes(b"no database" * 100)
        with pytest.raises(StoreError, match=r"hss\.db"):
            back_up(state, tmp_path / "backup")
        assert not (tmp_path / "backup").exists()
        state.path("hss.db").unlink()
        (tmp_path / "state" / "pki").mkdir()
        (tmp_path / "state" / "pki" / "gone.pem").symlink_to("nowhere")
        with pytest.raises(StateError, match="cannot be written"):
            back_up(state, tmp_path / "backup")
        assert not (tmp_path / "backup").exists()
        (tmp_path / "state" / "pki" / "gone.pem").unlink()
        assert back_up(state, tmp_path / "backup")
