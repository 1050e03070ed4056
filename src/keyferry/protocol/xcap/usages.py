# SPDX-License-Identifier: Apache-2.0
"""Application usages (RFC 4825 §5, §12.1; RFC 4826 §3; TS 24.623 §5.3, Release 17)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from keyferry.errors import ParseError
from keyferry.protocol import xmlsafe
from keyferry.protocol.xcap.errors import XcapConflict

MAX_DOCUMENT = 65_536
"""Octets: a simservs document with every service and 100 rules has 30,000."""
MAX_DEPTH = 32
"""Nested elements; resource-lists nest lists in lists, simservs has 8 levels."""

_DECLARED = re.compile(rb"^<\?xml[^>]{0,100}?\sencoding\s*=\s*[\"']([A-Za-z0-9._\-]{1,40})[\"']")


@dataclass(frozen=True, slots=True)
class ApplicationUsage:
    """An application usage as far as whole documents need it; each user may have only the documents named."""

    auid: str
    mime: str
    namespace: str
    root: str  # local name of the document's root element
    documents: tuple[str, ...]
    default: bytes | None = field(default=None, repr=False)  # what a user who stored nothing reads


def validate(usage: ApplicationUsage, body: bytes) -> None:
    """Check that a document may be stored: UTF-8, well-formed, the usage's root element (RFC 4825 §8.2.1, §8.2.5).

    What stands inside is not judged: phones write URIs and conditions beyond the published schemas.
    Raises XcapConflict, ParseError (413).
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise XcapConflict("not-utf-8", "The settings are not encoded in UTF-8.") from problem
    declared = _DECLARED.match(body.removeprefix(b"\xef\xbb\xbf"))
    if declared and declared[1].lower() not in {b"utf-8", b"us-ascii"}:
        raise XcapConflict("not-utf-8", "The settings are not encoded in UTF-8.")
    try:
        root = xmlsafe.parse(body, what="document", max_octets=MAX_DOCUMENT, max_depth=MAX_DEPTH)
    except ParseError as problem:
        if problem.status == 413:
            raise
        raise XcapConflict("not-well-formed", "The settings are damaged.") from problem
    if root.tag != f"{{{usage.namespace}}}{usage.root}":
        raise XcapConflict("schema-validation-error", "The settings are of another kind.")


# TS 24.604, 24.607, 24.608, 24.611, 24.615: what a subscriber with every service starts with. Phones refuse to write a rule that
# is not there, or a service that is not active, compare the prefix `cp:` as text, and look rules up by exactly these ids.
_SIMSERVS_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<simservs xmlns="http://uri.etsi.org/ngn/params/xml/simservs/xcap" xmlns:cp="urn:ietf:params:xml:ns:common-policy">
  <originating-identity-presentation active="true"/>
  <originating-identity-presentation-restriction active="true">
    <default-behaviour>presentation-not-restricted</default-behaviour>
  </originating-identity-presentation-restriction>
  <terminating-identity-presentation active="true"/>
  <terminating-identity-presentation-restriction active="true">
    <default-behaviour>presentation-not-restricted</default-behaviour>
  </terminating-identity-presentation-restriction>
  <communication-waiting active="true"/>
"""

_DIVERSION = (
    ("call-diversion-unconditional", ""),
    ("call-diversion-busy", "<busy/>"),
    ("call-diversion-no-reply", "<no-answer/>"),
    ("call-diversion-not-reachable", "<not-reachable/>"),
    ("call-diversion-not-logged-in", "<not-registered/>"),
)
_INCOMING = (("call-barring-all-incoming", ""), ("call-barring-incoming-in-roaming", "<roaming/>"))
_OUTGOING = (
    ("call-barring-all-outgoing", ""),
    ("call-barring-outgoing-international", "<international/>"),
    ("call-barring-outgoing-internationalExHC", "<international-exHC/>"),
)


def _ruleset(rules: Iterable[tuple[str, str]], action: str) -> str:
    lines = [
        f'      <cp:rule id="{name}">\n'
        f"        <cp:conditions><rule-deactivated/>{condition}</cp:conditions>\n"
        f"        <cp:actions>{action}</cp:actions>\n"
        "      </cp:rule>\n"
        for name, condition in rules
    ]
    return "    <cp:ruleset>\n" + "".join(lines) + "    </cp:ruleset>\n"


def default_simservs() -> bytes:
    """Return the document of a subscriber who stored none: every service on, every rule there and deactivated."""
    forward = "<forward-to><target></target><notify-caller>true</notify-caller></forward-to>"
    bar = "<allow>false</allow>"
    text = (
        f"{_SIMSERVS_HEAD}"
        '  <communication-diversion active="true">\n    <NoReplyTimer>20</NoReplyTimer>\n'
        f"{_ruleset(_DIVERSION, forward)}  </communication-diversion>\n"
        f'  <incoming-communication-barring active="true">\n{_ruleset(_INCOMING, bar)}  </incoming-communication-barring>\n'
        f'  <outgoing-communication-barring active="true">\n{_ruleset(_OUTGOING, bar)}  </outgoing-communication-barring>\n'
        "</simservs>\n"
    )
    return text.encode("utf-8")


SIMSERVS = ApplicationUsage(
    auid="simservs.ngn.etsi.org",
    mime="application/vnd.etsi.simservs+xml",
    namespace="http://uri.etsi.org/ngn/params/xml/simservs/xcap",
    root="simservs",
    documents=("simservs.xml",),
    default=default_simservs(),
)
RESOURCE_LISTS = ApplicationUsage(
    auid="resource-lists",
    mime="application/resource-lists+xml",
    namespace="urn:ietf:params:xml:ns:resource-lists",
    root="resource-lists",
    documents=("index",),
)
USAGES = (SIMSERVS, RESOURCE_LISTS)

CAPS_AUID = "xcap-caps"
CAPS_MIME = "application/xcap-caps+xml"
CAPS_NAMESPACE = "urn:ietf:params:xml:ns:xcap-caps"


def capabilities(usages: Iterable[ApplicationUsage]) -> bytes:
    """Return the document `xcap-caps/global/index` (RFC 4825 §12.1)."""
    served = list(usages)
    auids = "".join(f"    <auid>{auid}</auid>\n" for auid in (CAPS_AUID, *(usage.auid for usage in served)))
    namespaces = "".join(f"    <namespace>{name}</namespace>\n" for name in (CAPS_NAMESPACE, *(usage.namespace for usage in served)))
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<xcap-caps xmlns="{CAPS_NAMESPACE}">\n  <auids>\n{auids}  </auids>\n  <extensions/>\n'
        f"  <namespaces>\n{namespaces}  </namespaces>\n</xcap-caps>\n"
    )
    return text.encode("utf-8")
