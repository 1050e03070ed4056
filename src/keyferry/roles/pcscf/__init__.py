# SPDX-License-Identifier: Apache-2.0
"""The P-CSCF: its proxy, and the security agreement."""
