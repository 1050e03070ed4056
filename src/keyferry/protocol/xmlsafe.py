# SPDX-License-Identifier: Apache-2.0
"""The only XML parser: XML 1.0 (fifth edition) with namespaces, UTF-8 alone, no DTD, every dimension bounded.

It is expat and a small tree, not lxml: libxml2 keeps every element and attribute name it has ever seen in a table that lives as long as
its thread, so a peer could fill the memory with documents of new names, each within every limit. Here all goes with the tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NoReturn
from xml.parsers import expat

from keyferry.errors import LocalProtocolError, ParseError

MAX_OCTETS = 65_536
"""A document that comes in one SIP message (RFC 3261 over UDP ends there); callers with other carriers pass their own."""
MAX_DEPTH = 32
"""The deepest vocabulary in use, simservs, needs 12."""
MAX_ELEMENTS = 20_000
"""Bounds the memory: 150 octets of tree for the four that `<a/>` takes, so 3 MB."""
MAX_ATTRIBUTES = 64
"""In one tag; no vocabulary in use has over 10."""

_XML = "http://www.w3.org/XML/1998/namespace"
_NOWHERE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_MARKUP = re.compile(f"[&<>\"'\t\n\r]|{_NOWHERE.pattern}")
# the ampersand first, as the others bring their own
_REFERENCES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}


class Element:
    """An element: `tag` is `{namespace}name` or `name`, `attrib` likewise; `content` its text and children in order."""

    __slots__ = ("attrib", "content", "interrupted", "tag")

    def __init__(self, tag: str, attrib: dict[str, str]) -> None:
        self.tag = tag
        self.attrib = attrib
        self.content: list[str | Element] = []
        self.interrupted = False  # a comment or processing instruction stands directly inside

    def __iter__(self) -> Iterator[Element]:
        """Yield the child elements."""
        for item in self.content:
            if isinstance(item, Element):
                yield item

    def __repr__(self) -> str:
        return f"Element({self.tag.rpartition('}')[2]})"

    def get(self, name: str) -> str | None:
        """Return an attribute's value."""
        return self.attrib.get(name)


def parse(
    data: bytes | str, *, what: str, max_octets: int = MAX_OCTETS, max_depth: int = MAX_DEPTH, max_elements: int = MAX_ELEMENTS
) -> Element:
    """Return the root of a well-formed document without a document type; `what` names it in a ParseError.

    An encoding declaration is not believed: octets are UTF-8. Raises ParseError.
    """
    if isinstance(data, str):
        try:
            data = data.encode("utf-8")
        except UnicodeEncodeError:
            raise ParseError(what, "holds octets that are not UTF-8") from None
    if b"\0" in data:  # whatever it was told, expat takes UTF-16 for UTF-16, which has no "<" without one
        raise ParseError(what, "is not UTF-8")
    if len(data) > max_octets:
        raise ParseError(what, f"longer than {max_octets} octets", status=413)
    builder = _Builder(what, max_depth, max_elements)
    parser = expat.ParserCreate("utf-8", "}")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.CommentHandler = builder.interrupt
    parser.ProcessingInstructionHandler = builder.interrupt
    parser.StartDoctypeDeclHandler = builder.doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as problem:
        raise ParseError(what, f"not well-formed XML ({expat.ErrorString(problem.code)})") from None
    if builder.root is None:  # pragma: no cover - expat refuses a document without a root
        raise ParseError(what, "has no root element")
    return builder.root


class _Builder:
    """Build the tree; raise as soon as a limit is passed."""

    __slots__ = ("elements_left", "max_depth", "root", "stack", "what")

    def __init__(self, what: str, max_depth: int, max_elements: int) -> None:
        self.what = what
        self.max_depth = max_depth
        self.elements_left = max_elements
        self.root: Element | None = None
        self.stack: list[Element] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.elements_left -= 1
        if self.elements_left < 0 or len(self.stack) >= self.max_depth or len(attributes) > MAX_ATTRIBUTES:
            raise ParseError(self.what, "has too many elements or attributes, or is nested too deeply", status=413)
        if attributes and any(["}" in key for key in attributes]):
            attributes = {_clark(key): value for key, value in attributes.items()}
        element = Element("{" + name if "}" in name else name, attributes)
        if self.stack:
            self.stack[-1].content.append(element)
        else:
            self.root = element
        self.stack.append(element)

    def end(self, _name: str) -> None:
        self.stack.pop()

    def text(self, data: str) -> None:
        self.stack[-1].content.append(data)

    def interrupt(self, *_: str) -> None:
        if self.stack:
            self.stack[-1].interrupted = True

    def doctype(self, *_: object) -> NoReturn:
        raise ParseError(self.what, "has a document type declaration")


def _clark(name: str) -> str:
    return "{" + name if "}" in name else name


def text(element: Element, what: str) -> str:
    """Return the text of an element that may hold nothing else.

    A comment inside would let two readers see two values, so it is refused. Raises ParseError.
    """
    content = element.content
    if element.interrupted:
        raise ParseError(what, "has a comment or processing instruction within a value")
    if not content:
        return ""
    first = content[0]
    if len(content) == 1 and isinstance(first, str):
        return first
    pieces = [item for item in content if isinstance(item, str)]
    if len(pieces) < len(content):
        raise ParseError(what, "has an element where text was expected")
    return "".join(pieces)


def children(element: Element, tag: str) -> list[Element]:
    """Return the children of that tag, in order."""
    return [item for item in element.content if isinstance(item, Element) and item.tag == tag]


def child(element: Element, tag: str, what: str) -> Element | None:
    """Return the only child of that tag, None if there is none.

    Raises ParseError if there are several: two readers could choose two.
    """
    found: Element | None = None
    for item in element.content:
        if isinstance(item, Element) and item.tag == tag:
            if found is not None:
                raise ParseError(what, "repeats an element that may stand once")
            found = item
    return found


def child_text(element: Element, tag: str, what: str) -> str | None:
    """Return the text of the only child of that tag, None if there is none.

    Raises ParseError.
    """
    found = child(element, tag, what)
    return None if found is None else text(found, what)


def escape(value: str) -> str:
    """Return text that any XML parser reads back as `value`, in an element or a quoted attribute.

    Raises LocalProtocolError: XML has no form for most control characters (XML 1.0 §2.2).
    """
    if _MARKUP.search(value) is None:
        return value
    if _NOWHERE.search(value) is not None:
        raise LocalProtocolError("XML cannot carry a control character or half a surrogate pair")
    for character, reference in _REFERENCES.items():
        value = value.replace(character, reference)
    return value


def serialise(element: Element, *, within: str = "") -> str:
    """Return an element as text; `within` is the namespace that the prefix `e` already stands for."""
    space, name = _split(element.tag)
    parts = [f"<e:{name}" if space else f"<{name}"]
    if space and space != within:
        parts.append(f' xmlns:e="{escape(space)}"')
        within = space
    for i, (key, value) in enumerate(element.attrib.items()):
        space_of_key, local = _split(key)
        if space_of_key == _XML:
            local = f"xml:{local}"
        elif space_of_key:
            parts.append(f' xmlns:a{i}="{escape(space_of_key)}"')
            local = f"a{i}:{local}"
        parts.append(f' {local}="{escape(value)}"')
    tag = f"e:{name}" if space else name
    return f"{''.join(parts)}>{serialise_content(element, within=within)}</{tag}>"


def serialise_content(element: Element, *, within: str = "") -> str:
    """Return what stands between an element's tags, as text."""
    return "".join([_plain(item) if isinstance(item, str) else serialise(item, within=within) for item in element.content])


def _plain(value: str) -> str:
    # line ends may stand between elements, where a reference may not
    return escape(value).replace("&#10;", "\n").replace("&#9;", "\t")


def _split(tag: str) -> tuple[str, str]:
    space, _, name = tag.rpartition("}")
    return space[1:], name
