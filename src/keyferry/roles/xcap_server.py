# SPDX-License-Identifier: Apache-2.0
"""The XCAP server: whole documents of the user who asks (RFC 4825 §8; TS 24.623 §5.2, Release 17)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from keyferry.errors import ParseError, RemoteProtocolError
from keyferry.ports import Document, DocumentStore
from keyferry.protocol.identity import Impu, parse_impu
from keyferry.protocol.xcap.conditions import NO_CONDITIONS, Conditions, check_match, check_write, etag_of, not_modified
from keyferry.protocol.xcap.errors import XcapConflict
from keyferry.protocol.xcap.uri import XcapUri
from keyferry.protocol.xcap.usages import CAPS_AUID, CAPS_MIME, USAGES, ApplicationUsage, capabilities, validate

_known_impu = lru_cache(4_096)(parse_impu)  # one user's requests bring the same XUI; at most 1 MB


class XcapAnswer(NamedTuple):
    """What to answer; a client has succeeded with 200 and 201 (and 304 if it asked for that)."""

    status: int
    body: bytes = b""
    content_type: str | None = None
    etag: str | None = None  # strong, without quotes; only where a document is at the URI


@dataclass(frozen=True, slots=True)
class XcapServer:
    """Serve documents. There is one set per user: any public identity of the user names it, the first one owns it.

    Every method takes the identities that the door proved, the default first, and raises RemoteProtocolError with the
    status to answer: 404 for a usage that is not served, then 403 for another user's documents whether they exist or not, 404, 405, 412,
    415; XcapConflict for 409.
    """

    documents: DocumentStore
    usages: tuple[ApplicationUsage, ...] = USAGES

    async def get(self, impus: Sequence[Impu], uri: XcapUri, conditions: Conditions = NO_CONDITIONS) -> XcapAnswer:
        """Read a document (§8.4): what is stored, else what the usage gives to a user who stored nothing."""
        if uri.tree == "global":
            return self._global(uri, conditions)
        usage = self._usage(uri)
        owner = owner_of(impus, uri)
        stored = await self.documents.get(uri.auid, owner, uri.document)
        return _answer(_present(usage, uri, stored), usage.mime, conditions)

    async def put(
        self, impus: Sequence[Impu], uri: XcapUri, *, content_type: str | None, body: bytes, conditions: Conditions = NO_CONDITIONS
    ) -> XcapAnswer:
        """Create or replace a document (§8.2.1): durable when it returns."""
        usage, owner = self._writable(impus, uri)
        if content_type is None or content_type.partition(";")[0].strip().lower() != usage.mime:
            raise RemoteProtocolError(f"a document here has the type {usage.mime}", 415)
        if uri.document not in usage.documents:
            raise XcapConflict("constraint-failure", f"This service keeps its settings in {usage.documents[0]}.")
        validate(usage, body)
        etag = etag_of(body)
        new = await self.documents.put(
            uri.auid, owner, uri.document, Document(body, etag), expect=lambda stored: check_write(conditions, _etag(usage, uri, stored))
        )
        # A usage with a default has a document at the URI from the first day, so a PUT replaces it.
        return XcapAnswer(201 if new and usage.default is None else 200, etag=etag)

    async def delete(self, impus: Sequence[Impu], uri: XcapUri, conditions: Conditions = NO_CONDITIONS) -> XcapAnswer:
        """Delete a stored document (§8.3); where the usage has a default, that is what a user reads afterwards."""
        usage, owner = self._writable(impus, uri)
        gone = await self.documents.delete(
            uri.auid, owner, uri.document, expect=lambda stored: check_write(conditions, _etag(usage, uri, stored))
        )
        if not gone:
            raise RemoteProtocolError("you have stored no document here", 404)
        return XcapAnswer(200)

    def _writable(self, impus: Sequence[Impu], uri: XcapUri) -> tuple[ApplicationUsage, Impu]:
        if uri.tree == "global":
            raise RemoteProtocolError("the global tree is read-only", 405)
        return self._usage(uri), owner_of(impus, uri)

    def _usage(self, uri: XcapUri) -> ApplicationUsage:
        for usage in self.usages:
            if usage.auid == uri.auid:
                return usage
        raise RemoteProtocolError("this application usage is not served", 404)

    def _global(self, uri: XcapUri, conditions: Conditions) -> XcapAnswer:
        if (uri.auid, uri.document) != (CAPS_AUID, "index"):
            raise RemoteProtocolError("there is no such document", 404)
        body = capabilities(self.usages)
        return _answer(Document(body, etag_of(body)), CAPS_MIME, conditions)


def owner_of(impus: Sequence[Impu], uri: XcapUri) -> Impu:
    """Return the identity that owns the user's documents if the XUI is one of the user's (RFC 4825 §5.5).

    The scheme and the host may be in any case, `;user=phone` and other parameters do not count.
    Raises RemoteProtocolError (403).
    """
    try:
        xui = _known_impu(uri.xui or "")
    except ParseError as problem:
        raise RemoteProtocolError("these documents are not yours", 403) from problem
    if xui not in impus:
        raise RemoteProtocolError("these documents are not yours", 403)
    return impus[0]


def _present(usage: ApplicationUsage, uri: XcapUri, stored: Document | None) -> Document | None:
    if stored is None and usage.default is not None and uri.document == usage.documents[0]:
        return Document(usage.default, etag_of(usage.default))
    return stored


def _etag(usage: ApplicationUsage, uri: XcapUri, stored: Document | None) -> str | None:
    present = _present(usage, uri, stored)
    return present.etag if present else None


def _answer(document: Document | None, mime: str, conditions: Conditions) -> XcapAnswer:
    check_match(conditions, document.etag if document else None)
    if document is None:
        raise RemoteProtocolError("there is no such document", 404)
    if not_modified(conditions, document.etag):
        return XcapAnswer(304, etag=document.etag)
    return XcapAnswer(200, document.body, mime, document.etag)
