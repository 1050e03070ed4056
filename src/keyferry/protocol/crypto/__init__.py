# SPDX-License-Identifier: Apache-2.0
"""Primitives behind `Secret`; the only folder of the core that imports `cryptography`."""
