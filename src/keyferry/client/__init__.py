# SPDX-License-Identifier: Apache-2.0
"""The UE as a library: registration and HTTP with the ferried key."""
