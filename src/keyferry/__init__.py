# SPDX-License-Identifier: Apache-2.0
"""SIM-based login for HTTP applications: the keys of IMS AKA, ferried to application servers."""
