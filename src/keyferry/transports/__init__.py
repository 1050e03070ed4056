# SPDX-License-Identifier: Apache-2.0
"""Sockets, TLS and clocks: octets in, octets out."""
