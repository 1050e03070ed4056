# SPDX-License-Identifier: Apache-2.0
"""One network function per file; they meet only at ports."""
