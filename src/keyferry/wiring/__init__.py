# SPDX-License-Identifier: Apache-2.0
"""Builds a running system from a configuration; the only place that knows every class."""
