# SPDX-License-Identifier: Apache-2.0
"""The HTTP doors of an application server."""
