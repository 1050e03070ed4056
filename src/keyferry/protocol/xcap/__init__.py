# SPDX-License-Identifier: Apache-2.0
"""XCAP (RFC 4825): whole documents.

uri.py         where a document is: AUID, tree, XUI, path
conditions.py  If-Match and If-None-Match (RFC 9110 §13)
usages.py      application usages: media type, namespace, default document, checks
errors.py      409 and its body
"""
