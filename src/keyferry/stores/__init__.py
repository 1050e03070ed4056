# SPDX-License-Identifier: Apache-2.0
"""Implementations of the *Store ports.

memory.py       all of them in dictionaries: tests, the demo
sqlite/         all of them in SQLite, secrets sealed: one file or several, as wiring likes
connection.py   how an SQLite file is opened, and whose it is
database.py     one SQLite file: group commit, short reads
sealing.py      the seal of a row (DESIGN §3)
state_dir.py    the directory they live in: version, locks, KEK, ISC transport keys
rotation.py     a new KEK: every sealed row again
"""
