# SPDX-License-Identifier: Apache-2.0
"""SIP messages (RFC 3261 §7, §8.2.6, §18.3): text in, immutable values out, and back.

Header values stay as received, unfolded; typed views (`headers.py`) parse on demand. Text is UTF-8 with
surrogateescape, so any octets survive a round trip. `repr` shows no content: messages carry keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Self, TypeAlias

from keyferry.errors import LocalProtocolError, ParseError
from keyferry.protocol.sip.grammar import MAX_HEADERS, MAX_MESSAGE, MAX_METHOD, MAX_URI, MAX_VALUE, TOKEN, is_token
from keyferry.protocol.sip.headers import NameAddr, Via, check_name_addr, parse_cseq, parse_name_addr, top_via
from keyferry.protocol.sip.names import CANONICAL, KNOWN, METHODS, REASONS, canonical_name, lookup_key

Headers: TypeAlias = tuple[tuple[str, str], ...]
Index: TypeAlias = dict[str, list[str]]

SCHEMES = frozenset({"sip", "sips", "tel"})
"""Of a Request-URI: a subscription may be to a telephone number."""
MAX_CALL_ID = 512
"""Characters; RFC 3261 gives no limit, real ones have under 130."""

# Request-Line = Method SP Request-URI SP SIP-Version: single spaces, no <> (RFC 4475 §3.1.2.7 … 3.1.2.10)
_REQUEST_LINE = re.compile(rf'({TOKEN}) ([^ \t<>"\x00-\x1f\x7f]++) SIP/([0-9]++\.[0-9]++)', re.IGNORECASE | re.ASCII)
_STATUS_LINE = re.compile(r"SIP/([0-9]++\.[0-9]++) ([1-6][0-9]{2})(?: ([^\x00-\x08\x0a-\x1f\x7f]*+))?", re.IGNORECASE | re.ASCII)
_REQUEST_URI = re.compile(r'[^ \t<>"\x00-\x1f\x7f]++')
_CALL_ID = re.compile(r"[^ \t,;\x00-\x1f\x7f]++")
_DIGITS = re.compile(r"[0-9]{1,9}+", re.ASCII)
_WRITABLE = frozenset(KNOWN) - {"Content-Length"}
_LINES = 4_096  # octets at most of what `least_octets` leaves out: the first line of a response, Content-Length and the blank line
_ECHOED = ("From", "To", "Call-ID", "CSeq")


class _Fields:
    """What requests and responses do with header fields; names have no case, compact forms are understood."""

    __slots__ = ()
    headers: Headers
    _index: Index | None

    def get(self, name: str) -> str | None:
        """Return the first value of a header field, None if there is none."""
        values = self.rows().get(name)
        if values is None:
            values = self.rows().get(lookup_key(name))
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        """Return every row of a header field, top first; a row may hold a comma-separated list."""
        return list(self.rows().get(lookup_key(name), ()))

    def rows(self) -> Index:
        """Return the rows of each header field, top first, by its canonical name or, of one unknown, in lower case; not to be changed."""
        index = self._index
        if index is None:
            index = {}
            for name, value in self.headers:
                key = CANONICAL.get(name) or lookup_key(name)
                if key in index:
                    index[key].append(value)
                else:
                    index[key] = [value]
            self._keep(index)
        return index

    def _keep(self, index: Index) -> Self:
        object.__setattr__(self, "_index", index)  # a cache of an immutable value
        return self

    def with_headers(self, headers: Iterable[tuple[str, str]]) -> Self:
        """Return the message with these header fields instead."""
        raise NotImplementedError

    def replacing(self, name: str, *values: str) -> Self:
        """Return the message with `values` for `name`, where its first row was, or at the end."""
        key = lookup_key(name)
        new = [(canonical_name(name), value) for value in values]
        kept: list[tuple[str, str]] = []
        placed = False
        for row in self.headers:
            if lookup_key(row[0]) != key:
                kept.append(row)
            elif not placed:
                kept += new
                placed = True
        return self.with_headers(kept if placed else kept + new)

    def without(self, name: str) -> Self:
        """Return the message without a header field."""
        key = lookup_key(name)
        return self.with_headers([row for row in self.headers if lookup_key(row[0]) != key])

    def with_first(self, name: str, value: str) -> Self:
        """Return the message with another value in the first row of a header field that is there, by its canonical name."""
        headers = list(self.headers)
        place = next(number for number, row in enumerate(headers) if row[0] == name)
        headers[place] = (name, value)
        rows = self.rows()
        return self.with_headers(headers)._keep({**rows, name: [value, *rows[name][1:]]})

    def prepending(self, name: str, value: str) -> Self:
        """Return the message with one more row on top, as a Via or a Record-Route is added."""
        name, rows = canonical_name(name), self.rows()
        key = lookup_key(name)
        return self.with_headers(((name, value), *self.headers))._keep({**rows, key: [value, *rows.get(key, ())]})


@dataclass(frozen=True, slots=True, repr=False)
class Request(_Fields):
    """A SIP request; `headers` hold no Content-Length, `build_message` writes it."""

    method: str
    uri: str
    headers: Headers
    body: bytes = b""
    _index: Index | None = field(default=None, init=False, compare=False)

    def with_headers(self, headers: Iterable[tuple[str, str]]) -> Self:
        """Return the message with these header fields instead."""
        return type(self)(self.method, self.uri, tuple(headers), self.body)

    def __repr__(self) -> str:
        return f"<Request {self.method}, {len(self.headers)} header fields, body of {len(self.body)} octets>"


@dataclass(frozen=True, slots=True, repr=False)
class Response(_Fields):
    """A SIP response; `headers` hold no Content-Length, `build_message` writes it."""

    status: int
    reason: str
    headers: Headers
    body: bytes = b""
    _index: Index | None = field(default=None, init=False, compare=False)

    def with_headers(self, headers: Iterable[tuple[str, str]]) -> Self:
        """Return the message with these header fields instead."""
        return type(self)(self.status, self.reason, tuple(headers), self.body)

    def __repr__(self) -> str:
        return f"<Response {self.status}, {len(self.headers)} header fields, body of {len(self.body)} octets>"


Message: TypeAlias = Request | Response


def parse_message(data: bytes) -> Message:
    """Read one whole message, such as an UDP datagram.

    Octets beyond Content-Length are dropped (RFC 3261 §18.3), CRLFs before the start line too (§7.5).
    What a request must hold is for `check_request`. Raises ParseError (505 for another SIP version).
    """
    if len(data) > MAX_MESSAGE:
        raise ParseError("SIP message", f"over {MAX_MESSAGE} octets", 513)
    head, separator, body = data.partition(b"\r\n\r\n")
    if not head or head[0] in b"\r\n":
        head, separator, body = data.lstrip(b"\r\n").partition(b"\r\n\r\n")
    if not separator:
        raise ParseError("SIP message", "no empty line after the header")
    text = head.decode("utf-8", "surrogateescape")
    lines = text.split("\r\n")
    breaks = len(lines) - 1
    if text.count("\r") != breaks or text.count("\n") != breaks or "\0" in text:
        raise ParseError("SIP message", "a lone CR or LF, or NUL, in the header")
    headers, index, length = _headers(lines if "\r\n " not in text and "\r\n\t" not in text else _unfolded(lines))
    if length is not None:
        if length > len(body):
            raise ParseError("Content-Length", "more than the message holds")
        body = body[:length]
    return _started(lines[0], headers, body)._keep(index)


def check_request(request: Request) -> Via:
    """Check what every request must hold (RFC 3261 §8.1.1, §8.2, §16.3); return its top Via.

    Exactly one From, To, Call-ID, CSeq with the same method, at least one Via; Max-Forwards, where present, is one
    number from 0 to 255 (RFC 2543 elements send none); a Request-URI of a scheme that is served, else the status is 416
    (§8.2.2.1). Raises ParseError.
    """
    rows = request.rows()
    for name in _ECHOED:
        if len(rows.get(name, ())) != 1:
            raise ParseError(name, "not exactly one in a request")
    check_name_addr(rows["From"][0])
    parse_name_addr(rows["To"][0])
    if parse_cseq(rows["CSeq"][0]).method != request.method:
        raise ParseError("CSeq", "another method than the request's")
    call_id = rows["Call-ID"][0]
    if len(call_id) > MAX_CALL_ID or not _CALL_ID.fullmatch(call_id):
        raise ParseError("Call-ID", "not one word of bounded length")
    hops = rows.get("Max-Forwards")
    if hops is not None and (len(hops) > 1 or not _DIGITS.fullmatch(hops[0]) or int(hops[0]) > 255):
        raise ParseError("Max-Forwards", "not one number from 0 to 255")
    via = rows.get("Via")
    if not via:
        raise ParseError("Via", "none in a request")
    if request.uri.partition(":")[0].lower() not in SCHEMES:
        raise ParseError("Request-URI", "of a scheme that is not served", status=416)
    return top_via(via[0])[0]


def build_message(message: Message) -> bytes:
    """Write a message with its Content-Length: the reverse of `parse_message`.

    Raises LocalProtocolError for CR, LF or NUL in a value, a name that is no token, or a wrong start line: nobody
    may inject a header field.
    """
    lines = [_start_line(message)]
    for name, value in message.headers:
        if name not in _WRITABLE and (not is_token(name) or canonical_name(name) == "Content-Length"):
            raise LocalProtocolError("a header field's name is no token, or is Content-Length, which build_message writes")
        lines.append(f"{name}: {value}")
    lines.append(f"Content-Length: {len(message.body)}\r\n\r\n")
    text = "\r\n".join(lines)
    breaks = len(lines) + 1
    if text.count("\r") != breaks or text.count("\n") != breaks or "\0" in text:
        raise LocalProtocolError("CR, LF or NUL in a header field")
    try:
        return text.encode("utf-8", "surrogateescape") + message.body
    except UnicodeEncodeError as problem:
        raise LocalProtocolError("a header field that UTF-8 cannot hold") from problem


def octets_of(text: str) -> int:
    """Return how many octets a part of a message takes when it is sent."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def is_too_large(message: Message) -> bool:
    """Tell whether a message is over MAX_MESSAGE octets, mostly without writing it."""
    return 4 * least_octets(message) > MAX_MESSAGE - _LINES and len(build_message(message)) > MAX_MESSAGE


def least_octets(message: Message) -> int:
    """Return a number of octets that a message has in any case, without writing it."""
    return len(message.body) + sum([len(name) + len(value) + 4 for name, value in message.headers])


def make_response(
    request: Request,
    status: int,
    reason: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    to_tag: str | None = None,
) -> Response:
    """Answer a request: Via, From, To, Call-ID, CSeq copied, To tagged if it had no tag (RFC 3261 §8.2.6.2)."""
    rows = request.rows()
    copied = [("Via", value) for value in rows.get("Via", ())]
    copied += [(name, rows[name][0]) for name in _ECHOED if name in rows]
    if to_tag is not None:
        copied = [(name, _tagged(value, to_tag) if name == "To" else value) for name, value in copied]
    if reason is None:
        reason = REASONS.get(status) or REASONS.get(status // 100 * 100, "")
    return Response(status, reason, (*copied, *headers), body)


def refuse_method(request: Request, *allowed: str) -> Response:
    """Answer a request of a method that is not among those allowed here: 405, or 501 if no document knows it (RFC 3261 §8.2.1, §21.5.2)."""
    return make_response(request, 405 if request.method in METHODS else 501, headers=(("Allow", ", ".join(allowed)),))


def with_to_tag(response: Response, tag: str | Callable[[], str]) -> Response:
    """Return the response with a To tag, its own if it has one; a To that cannot be read stays as it is."""
    for number, (name, to) in enumerate(response.headers):
        if name == "To":
            tagged = _tagged(to, tag)
            if tagged != to:
                return response.with_headers((*response.headers[:number], (name, tagged), *response.headers[number + 1 :]))
            break
    return response


def _tagged(to: str, tag: str | Callable[[], str]) -> str:
    after_uri = to.rpartition(">")[2]
    if ";tag=" in after_uri and '"' not in after_uri:  # nothing is left that could hide it: the usual case, told without parsing
        return to
    try:
        if parse_name_addr(to).parameter("tag") is not None:
            return to
    except ParseError:
        return to
    return f"{to};tag={tag if isinstance(tag, str) else tag()}"


def unsupported_tags(request: Request, name: str, supported: Collection[str]) -> list[str]:
    """Return the option tags of Require or Proxy-Require that are not among `supported`, lower case (RFC 3261 §8.2.2.3, §16.3)."""
    tags = (tag.strip(" \t") for value in request.all(name) for tag in value.split(","))
    return [tag for tag in tags if tag and tag.lower() not in supported]


def salvage_request(data: bytes) -> Request | None:
    """Read from a malformed request just what an answer 400 needs (RFC 3261 §8.2.6.2).

    Return None if it is no request, is an ACK (never answered), lacks Via or Call-ID, or one of From, To, CSeq in readable form.
    """
    text = data[:MAX_MESSAGE].lstrip(b"\r\n").partition(b"\r\n\r\n")[0].decode("utf-8", "surrogateescape").replace("\0", "?")
    lines = _unfolded(text.split("\r\n")[: 2 * MAX_HEADERS])
    method, _, rest = lines[0].partition(" ")
    if method == "ACK" or not is_token(method) or "SIP/" not in rest.upper():
        return None
    found: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        name = canonical_name(name.rstrip(" \t"))
        if name in ("Via", *_ECHOED) and name not in found and "\r" not in value and "\n" not in value:
            found[name] = value.strip(" \t")[:MAX_VALUE]
    try:
        names: list[NameAddr] = [parse_name_addr(found[name]) for name in ("From", "To")]
        parse_cseq(found["CSeq"])
        return Request(method, names[1].uri, tuple((name, found[name]) for name in ("Via", *_ECHOED)))
    except (KeyError, ParseError):
        return None


def _unfolded(lines: list[str]) -> list[str]:
    # RFC 3261 §7.3.1: a line that begins with SP or HT continues the one before; the break becomes one SP
    found: list[list[str]] = []
    for line in lines:
        if line[:1] in (" ", "\t") and found:
            found[-1].append(line.strip(" \t"))
        else:
            found.append([line])
    return [" ".join(parts) for parts in found]


def _headers(lines: list[str]) -> tuple[Headers, Index, int | None]:
    if len(lines) > MAX_HEADERS + 1:
        raise ParseError("SIP message", f"more than {MAX_HEADERS} header fields")
    found: list[tuple[str, str]] = []
    index: Index = {}
    known = CANONICAL.get
    length: int | None = None
    for line in lines[1:]:
        raw, colon, value = line.partition(":")
        name = known(raw) or _name(raw, colon)
        value = value.strip(" \t")
        if len(value) > MAX_VALUE:
            raise ParseError("SIP message", f"a header field over {MAX_VALUE} characters")
        if name == "Content-Length":
            length = _content_length(value, length)
            continue
        found.append((name, value))
        key = known(name) or name.lower()
        if key in index:
            index[key].append(value)
        else:
            index[key] = [value]
    return tuple(found), index, length


def _name(raw: str, colon: str) -> str:
    name = raw.rstrip(" \t")
    if not colon or not is_token(name):
        raise ParseError("SIP message", "a line of the header is not a name, a colon and a value")
    return canonical_name(name)


def _content_length(value: str, before: int | None) -> int:
    if not _DIGITS.fullmatch(value):
        raise ParseError("Content-Length", "not a number")
    length = int(value)
    if before is not None and before != length:
        raise ParseError("Content-Length", "two that differ")
    return length


def _started(line: str, headers: Headers, body: bytes) -> Message:
    found = _REQUEST_LINE.fullmatch(line)
    if found is not None:
        method, uri, version = found.groups()
        if version != "2.0":
            raise ParseError("SIP version", "not 2.0", 505)
        if len(method) > MAX_METHOD:
            raise ParseError("method", f"longer than {MAX_METHOD} characters")
        if len(uri) > MAX_URI:
            raise ParseError("Request-URI", f"longer than {MAX_URI} characters", 414)
        return Request(method, uri, headers, body)
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        raise ParseError("start line", "neither a Request-Line nor a Status-Line")
    version, status, reason = found.groups()
    if version != "2.0":
        raise ParseError("SIP version", "not 2.0", 505)
    return Response(int(status), reason or "", headers, body)


def _start_line(message: Message) -> str:
    if isinstance(message, Response):
        if not 100 <= message.status <= 699:
            raise LocalProtocolError("a status outside 100 … 699")
        return f"SIP/2.0 {message.status} {message.reason}"
    if not is_token(message.method) or not _REQUEST_URI.fullmatch(message.uri):
        raise LocalProtocolError("a method that is no token, or a Request-URI with spaces, quotes or brackets")
    return f"{message.method} {message.uri} SIP/2.0"
