# SPDX-License-Identifier: Apache-2.0
"""What IMS adds: keys, marker, registration, filter criteria, third-party REGISTER, key push."""
