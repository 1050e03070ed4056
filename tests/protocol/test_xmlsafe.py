# SPDX-License-Identifier: Apache-2.0
"""The XML parser."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import LocalProtocolError, ParseError
from keyferry.protocol import xmlsafe
from keyferry.protocol.xmlsafe import Element, parse

CHARACTERS = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff") | st.sampled_from(
    "\t\n\r\x7f\x85"
)
TEXT = st.text(CHARACTERS, max_size=40)
NAMES = st.sampled_from(["a", "b-c", "d.e", "ü", "_x", "kf"])
SPACES = st.sampled_from(["", "", "urn:x", "urn:y&z", "http://www.w3.org/XML/1998/namespace"])


@st.composite
def elements(draw: st.DrawFn, depth: int = 3) -> Element:
    space = draw(SPACES.filter(lambda name: not name.startswith("http")))
    tag = f"{{{space}}}{draw(NAMES)}" if space else draw(NAMES)
    keys = [f"{{{one}}}{name}" if one else name for one, name in draw(st.lists(st.tuples(SPACES, NAMES), max_size=3, unique=True))]
    element = Element(tag, {key: draw(TEXT) for key in keys})
    for _ in range(draw(st.integers(0, 3)) if depth else 0):
        if draw(st.booleans()):
            element.content.append(draw(elements(depth=depth - 1)))
        elif not element.content or isinstance(element.content[-1], Element):
            element.content.append(draw(TEXT.filter(bool)))
    return element


def same(one: Element, other: Element) -> bool:
    pairs = zip(one.content, other.content, strict=True)
    return (
        one.tag == other.tag
        and one.attrib == other.attrib
        and all(a == b if isinstance(a, str) else isinstance(b, Element) and same(a, b) for a, b in pairs)
    )


@pytest.mark.parametrize(
    "document",
    [
        '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        "<!DOCTYPE a><a/>",
        '<!DOCTYPE a [<!ENTITY % p SYSTEM "http://x/">%p;]><a/>',
        '<?xml version="1.0"?>\n<!DOCTYPE a [<!ATTLIST a b CDATA "c">]>\n<a/>',
    ],
)
def test_a_document_type_is_refused(document: str) -> None:
    """DESIGN §6."""
    with pytest.raises(ParseError, match="document type"):
        parse(document, what="test")


@pytest.mark.parametrize(
    "document",
    [
        "",
        " ",
        "text",
        "<a>",
        "</a>",
        "<a></b>",
        "<a/><b/>",
        "<a/>tail",
        "<a b='1' b='2'/>",
        "<a xmlns:p='urn:x' xmlns:q='urn:x' p:b='1' q:b='2'/>",
        "<p:a/>",
        "<a>&x;</a>",
        "<a>&#0;</a>",
        "<a>\x01</a>",
        "<a>\ufffe</a>",
        "<a>]]></a>",
        "<a b='<'/>",
        "<a>&</a>",
        "<a xmlns:p=''/>",
        "<a><!-- -- --></a>",
        "<a \ud800='x'/>",
        "<a>\udcff</a>",
    ],
)
def test_what_is_not_well_formed_is_refused_without_quoting_it(document: str) -> None:
    """XML 1.0 §2.1, Namespaces in XML §6.3."""
    with pytest.raises(ParseError) as problem:
        parse(document, what="test")
    assert problem.value.what == "test"
    assert problem.value.__cause__ is None


def test_other_encodings_than_utf_8_are_not_believed() -> None:
    """DESIGN §6."""
    assert parse(b"\xef\xbb\xbf<a/>", what="test").tag == "a"
    assert xmlsafe.text(parse('<?xml version="1.0" encoding="ISO-8859-1"?><a>é</a>'.encode(), what="test"), "test") == "é"
    marked = "<a>é</a>".encode("utf-16")
    for data in (
        marked,
        marked[2:],
        "\ufeff<a/>".encode("utf-16-be"),
        "<a/>".encode("utf-16-be"),
        "<a/>".encode("utf-32"),
        "<a>é</a>".encode("latin-1"),
        b"<a>\xc0\xbc</a>",
        b"<a>\xed\xa0\x80</a>",
        b"+ADw-a/+AD4-",
    ):
        with pytest.raises(ParseError):
            parse(data, what="test")


def test_every_dimension_is_bounded() -> None:
    """DESIGN §6."""
    deep = "<a>" * 32 + "</a>" * 32
    assert parse(deep, what="test").tag == "a"
    for document, limit in (
        (f"<b>{deep}</b>", 1_000),
        ("<a>" + "<b/>" * xmlsafe.MAX_ELEMENTS + "</a>", 100_000),
        ("<a " + " ".join(f"b{i}=''" for i in range(65)) + "/>", 1_000),
        ("<a>" + "x" * xmlsafe.MAX_OCTETS + "</a>", xmlsafe.MAX_OCTETS),
        ("<a>é</a>", 8),
    ):
        with pytest.raises(ParseError) as problem:
            parse(document, what="test", max_octets=limit)
        assert problem.value.status == 413


def test_hostile_documents_of_64_kb_take_no_time() -> None:
    """DESIGN §6."""
    with costs_under(1.0):
        for document in (
            "<a>" * 16_000,
            "<a " + " ".join(f"b{i}=''" for i in range(7_000)) + "/>",
            "<a " + " ".join(f"xmlns:b{i}='u{i}'" for i in range(3_000)) + "/>",
            "<a>" + "&amp;" * 12_000 + "</a>",
            "<a>" + "<![CDATA[x]]>" * 4_000 + "</a>",
            "<a>" + "x<!---->" * 7_000 + "</a>",
            "<" + "a" * 65_000 + "/>",
            "<a b='" + "&#9;" * 16_000 + "'/>",
        ):
            with contextlib.suppress(ParseError):
                xmlsafe.text(parse(document, what="test"), "test")


def test_names_never_seen_before_leave_nothing_behind() -> None:
    """A table of all names ever seen would be a leak that a peer fills (module docstring)."""
    documents = [f"<a{i}>{''.join(f'<b{i}-{j}/>' for j in range(200))}</a{i}>" for i in range(60)]
    parse(documents[0], what="test")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for document in documents:
            parse(document, what="test")
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


def test_text_is_whole_whatever_it_is_written_with() -> None:
    """XML 1.0 §2.7, §4.1."""
    assert xmlsafe.text(parse("<a>x<![CDATA[<y>&amp;]]>&lt;&#122;\r\n</a>", what="test"), "test") == "x<y>&amp;<z\n"
    assert xmlsafe.text(parse("<a/>", what="test"), "test") == ""
    assert xmlsafe.text(parse("<!-- x --><a>y</a><?z?>", what="test"), "test") == "y"


@pytest.mark.parametrize("document", ["<a>x<!-- y -->z</a>", "<a><!-- y -->z</a>", "<a>x<?y?></a>", "<a>x<b/>z</a>", "<a><b/></a>"])
def test_two_readers_cannot_read_two_texts(document: str) -> None:
    """A comment inside a value has let users forge identities elsewhere."""
    with pytest.raises(ParseError):
        xmlsafe.text(parse(document, what="test"), "test")


def test_children_are_found_by_their_expanded_name() -> None:
    """Namespaces in XML §5."""
    root = parse('<a xmlns="urn:x" xmlns:y="urn:y" y:k="1" k="2"><b>1</b>-<!-- --><y:b>2</y:b><y:c/><b/></a>', what="test")
    assert root.tag == "{urn:x}a"
    assert (root.get("k"), root.get("{urn:y}k"), root.get("z")) == ("2", "1", None)
    assert [child.tag for child in root] == ["{urn:x}b", "{urn:y}b", "{urn:y}c", "{urn:x}b"]
    assert len(xmlsafe.children(root, "{urn:x}b")) == 2
    assert xmlsafe.child(root, "b", "test") is None
    assert xmlsafe.child_text(root, "b", "test") is None
    assert xmlsafe.child_text(root, "{urn:y}b", "test") == "2"
    with pytest.raises(ParseError, match="repeats"):
        xmlsafe.child(root, "{urn:x}b", "test")
    assert repr(root) == "Element(a)"


@pytest.mark.parametrize("text", ["\0", "\x1b", "\ud800", "\udcff", "\uffff"])
def test_text_that_xml_cannot_carry_is_our_bug(text: str) -> None:
    """XML 1.0 §2.2."""
    with pytest.raises(LocalProtocolError):
        xmlsafe.escape(text)


@given(TEXT)
@example(" \t\r\n'\"<>&]]>")
def test_escaped_text_is_read_back(text: str) -> None:
    """XML 1.0 §2.11, §3.3.3: no normalisation may change it."""
    root = parse(f"<a b='{xmlsafe.escape(text)}' c=\"{xmlsafe.escape(text)}\">{xmlsafe.escape(text)}</a>", what="test")
    assert (root.get("b"), root.get("c"), xmlsafe.text(root, "test")) == (text, text, text)


@given(elements())
def test_an_element_is_read_back(element: Element) -> None:
    """Reverse of parse."""
    assert same(parse(xmlsafe.serialise(element), what="test"), element)


@given(st.binary(max_size=200) | st.text(st.sampled_from("<>/a&;![]'\"= ?-:x#"), max_size=60).map(str.encode))
def test_any_octets_give_an_element_or_a_parse_error(data: bytes) -> None:
    """STYLE §4."""
    try:
        root = parse(data, what="test")
    except ParseError:
        return
    assert same(parse(xmlsafe.serialise(root), what="test"), root)
