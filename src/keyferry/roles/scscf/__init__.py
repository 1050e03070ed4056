# SPDX-License-Identifier: Apache-2.0
"""The S-CSCF: authenticator, registrar, AS notifier."""
