# SPDX-License-Identifier: Apache-2.0
"""Header field names, compact forms (RFC 3261 §7.3.3, §20) and reason phrases (RFC 3261 §21)."""

from __future__ import annotations

from typing import Final

KNOWN: Final = (
    "Via", "From", "To", "Call-ID", "CSeq", "Contact", "Max-Forwards", "Content-Type", "Content-Length", "Expires", "Authorization",
    "WWW-Authenticate", "Authentication-Info", "Proxy-Authorization", "Proxy-Authenticate", "Route", "Record-Route", "Path",
    "Service-Route",
    "P-Associated-URI", "P-Access-Network-Info", "P-Visited-Network-ID", "P-Charging-Vector", "P-Charging-Function-Addresses",
    "P-Asserted-Identity", "P-Preferred-Identity", "P-Called-Party-ID", "Security-Client", "Security-Server", "Security-Verify", "Require",
    "Proxy-Require", "Supported", "Unsupported", "Allow", "Accept", "Accept-Encoding", "Accept-Language", "Min-Expires", "Retry-After",
    "User-Agent", "Server", "Date", "Event", "Allow-Events", "Subscription-State", "Content-Encoding", "Content-Language",
    "Content-Disposition", "MIME-Version", "Subject", "Timestamp", "Warning", "Organization", "Priority", "Alert-Info", "Call-Info",
    "Error-Info", "In-Reply-To", "Reply-To", "Privacy", "Refer-To", "Referred-By", "Session-Expires", "Session-ID", "Accept-Contact",
    "Reject-Contact", "Request-Disposition", "Identity", "Flow-Timer", "SIP-ETag", "SIP-If-Match", "Feature-Caps",
    "Geolocation", "History-Info", "Reason", "Replaces", "Min-SE", "RSeq", "RAck", "P-Early-Media",
)  # fmt: skip
"""Names as their documents write them."""

COMPACT: Final = {
    "v": "Via", "f": "From", "t": "To", "i": "Call-ID", "m": "Contact", "l": "Content-Length", "c": "Content-Type", "e": "Content-Encoding",
    "k": "Supported", "s": "Subject", "o": "Event", "u": "Allow-Events", "r": "Refer-To", "b": "Referred-By", "x": "Session-Expires",
    "a": "Accept-Contact", "j": "Reject-Contact", "d": "Request-Disposition", "y": "Identity",
}  # fmt: skip
"""One-letter forms: RFC 3261 and the extensions IANA lists."""

CANONICAL: Final[dict[str, str]] = {
    **{name.lower(): name for name in KNOWN},
    **{name: name for name in KNOWN},
    **COMPACT,
    **{letter.upper(): name for letter, name in COMPACT.items()},
}
"""Every spelling met in practice; any other goes through `canonical_name`."""

METHODS: Final = frozenset((
    "REGISTER", "INVITE", "ACK", "CANCEL", "BYE", "OPTIONS", "SUBSCRIBE", "NOTIFY", "PUBLISH", "MESSAGE", "INFO", "PRACK", "UPDATE",
    "REFER",
))  # fmt: skip
"""Methods that a document defines: RFC 3261, and the extensions IANA lists."""

REASONS: Final = {
    100: "Trying", 180: "Ringing", 181: "Call Is Being Forwarded", 182: "Queued", 183: "Session Progress", 200: "OK", 202: "Accepted",
    300: "Multiple Choices", 301: "Moved Permanently", 302: "Moved Temporarily", 305: "Use Proxy", 380: "Alternative Service",
    400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    406: "Not Acceptable", 407: "Proxy Authentication Required", 408: "Request Timeout", 410: "Gone", 413: "Request Entity Too Large",
    414: "Request-URI Too Long", 415: "Unsupported Media Type", 416: "Unsupported URI Scheme", 420: "Bad Extension",
    421: "Extension Required", 423: "Interval Too Brief", 439: "First Hop Lacks Outbound Support", 480: "Temporarily Unavailable",
    481: "Call/Transaction Does Not Exist", 482: "Loop Detected", 483: "Too Many Hops", 484: "Address Incomplete", 485: "Ambiguous",
    486: "Busy Here", 487: "Request Terminated", 488: "Not Acceptable Here", 489: "Bad Event", 491: "Request Pending",
    493: "Undecipherable", 494: "Security Agreement Required", 500: "Server Internal Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Server Time-out", 505: "Version Not Supported", 513: "Message Too Large", 600: "Busy Everywhere",
    603: "Decline", 604: "Does Not Exist Anywhere", 606: "Not Acceptable",
}  # fmt: skip
"""RFC 3261 §21; RFC 3329 (421, 494), RFC 5626 (439), RFC 6665 (489)."""


def canonical_name(name: str) -> str:
    """Return a header field's name as its document writes it; an unknown one as it was received."""
    return CANONICAL.get(name) or CANONICAL.get(name.lower(), name)


def lookup_key(name: str) -> str:
    """Return what two spellings of one header field have in common."""
    return CANONICAL.get(name) or CANONICAL.get(lowered := name.lower(), lowered)
