# SPDX-License-Identifier: Apache-2.0
"""SIP: grammar, URIs, headers, messages, transactions (RFC 3261)."""
