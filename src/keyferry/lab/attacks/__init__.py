# SPDX-License-Identifier: Apache-2.0
"""Hostile parties as test instruments: each attacks a whole network of its own, on loopback sockets (DESIGN §5, §6)."""
