# SPDX-License-Identifier: Apache-2.0
"""Demo, topologies and load generators."""
