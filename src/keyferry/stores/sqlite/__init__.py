# SPDX-License-Identifier: Apache-2.0
"""The stores in SQLite: each takes a Database, that it may share with others, and a Keyring where it has secrets.

subscribers.py     HSS: K and OPc sealed
scripts.py         HSS: for scripts of Kamailios, XRES sealed until its answer is proven, and who was ended
registrations.py   S-CSCF: K_M sealed, user data once, pushes owed
keys.py            AS: K_AS sealed a device, cached while no other process writes
ledger.py          key agent: what nonces were used for, sealed from a clean end to the next start
documents.py       AS: whole XCAP documents, as they are
ue.py              UE: its whole state sealed
"""
