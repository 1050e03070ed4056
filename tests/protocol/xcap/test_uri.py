# SPDX-License-Identifier: Apache-2.0
"""RFC 4825 §6; HANDSETS X6, X8 to X10."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import RemoteProtocolError
from keyferry.protocol.xcap.uri import MAX_PATH, XcapUri, build_xcap_uri, parse_xcap_uri

SIMSERVS = XcapUri("simservs.ngn.etsi.org", "users", "sip:alice@home1.net", "simservs.xml")


@pytest.mark.parametrize(
    ("path", "root", "uri"),
    [
        ("/simservs.ngn.etsi.org/users/sip:alice@home1.net/simservs.xml", "", SIMSERVS),
        ("/simservs.ngn.etsi.org/users/sip%3Aalice%40home1.net/simservs.xml", "/", SIMSERVS),
        ("/mtasxdms/simservs.ngn.etsi.org/users/sip%3aalice@home1.net/simservs.xml", "/mtasxdms", SIMSERVS),
        ("/UtProxy/rest/simservs.ngn.etsi.org/users/sip:alice:0000@home1.net/simservs.xml", "/UtProxy/rest/", SIMSERVS),
        ("/simservs.ngn.etsi.org/users/sip:alice@home1.net/simservs.xml?xmlns(ss=http://x/y)xmlns(cp=urn:z)", "", SIMSERVS),
        ("/simservs.ngn.etsi.org/users/tel:+15551234/simservs.xml", "", SIMSERVS._replace(xui="tel:+15551234")),
        ("/xcap-caps/global/index", "", XcapUri("xcap-caps", "global", None, "index")),
        ("/a/users/sip:x%2Fy@h/d/e%20f", "", XcapUri("a", "users", "sip:x/y@h", "d/e f")),
        ("/a/users/users/global", "", XcapUri("a", "users", "users", "global")),
        ("/a/users/%C3%A9/d", "", XcapUri("a", "users", "\u00e9", "d")),
    ],
)
def test_a_document_is_found(path: str, root: str, uri: XcapUri) -> None:
    """RFC 4825 §6.2."""
    assert parse_xcap_uri(path, root) == uri
    assert parse_xcap_uri(path.encode(), root) == uri


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("", 404),
        ("*", 404),
        ("/", 404),
        ("/a", 404),
        ("/a/users", 404),
        ("/a/users/sip:x@h", 404),
        ("/a/users/sip:x@h/", 404),
        ("/a/users/sip:x@h/d/", 404),
        ("/a/users/sip:x@h//d", 404),
        ("/a/users/sip:x@h/../d", 404),
        ("/a/users/sip:x@h/%2e%2e/d", 404),
        ("/a/users/sip:x@h/d%2Fe", 404),
        ("/a/users/sip:x@h/1/2/3/4/5/6/7/8/9", 404),
        ("/a/Users/sip:x@h/d", 404),
        ("/a/global", 404),
        ("/a%2Fb/global/d", 404),
        ("/" + "a" * 101 + "/global/d", 404),
        ("https://xcap.home1.net/a/global/d", 404),
        ("/a/users/sip:x@h/d%0", 400),
        ("/a/users/sip:x@h/d%zz", 400),
        ("/a/users/sip:x@h/d%00", 400),
        ("/a/users/sip:x%0D%0A@h/d", 400),
        ("/a/users/%FF/d", 400),
        ("/a/users/\ud800/d", 400),
        ("/a/users/sip:x@h/d/~~/simservs/communication-diversion", 501),
        ("/a/users/sip:x@h/d/%7E%7e/simservs", 501),
        ("/a/users/sip:x@h/d/~~", 501),
        ("/a/global/d/~~/x", 501),
        ("/" + "a" * MAX_PATH, 414),
    ],
)
def test_what_is_no_document_is_refused(path: str, status: int) -> None:
    """RFC 4825 §6."""
    with pytest.raises(RemoteProtocolError) as caught:
        parse_xcap_uri(path, "")
    assert caught.value.status == status


@pytest.mark.parametrize("path", ["/x", "/xcapx/a/global/d", "/XCAP/a/global/d", "/%78cap/a/global/d"])
def test_only_what_is_below_the_root_is_served(path: str) -> None:
    """RFC 4825 §6.1."""
    with pytest.raises(RemoteProtocolError) as caught:
        parse_xcap_uri(path, "/xcap")
    assert caught.value.status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/a/users/sip:alice:s3cret@home1.net/d",
        "/a/users/SIPS:alice:s3cret@home1.net/d",
        "/a/users/sip%3Aalice%3As3cret%40home1.net/d",
        "/a/users/sip:alice:s3cret@x:s3cret@home1.net/d",
        "/a/users/alice:s3cret@home1.net/d",
        "/a/users/http:alice:s3cret@home1.net/d",
    ],
)
def test_a_password_in_the_path_goes_no_further(path: str) -> None:
    """HANDSETS X10."""
    assert "s3cret" not in repr(parse_xcap_uri(path, ""))
    for broken in (path + "%", path + "/..", path + "/~~/x"):
        with pytest.raises(RemoteProtocolError) as caught:
            parse_xcap_uri(broken, "")
        assert "s3cret" not in repr(caught.value)


_NAME = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=12).filter(
    lambda name: name not in {".", "..", "~~"}
)


@given(
    st.builds(
        lambda auid, xui, names: XcapUri(auid, "global" if xui is None else "users", xui, "/".join(names)),
        st.from_regex(r"\A[A-Za-z0-9.\-]{1,20}\Z"),
        st.none() | st.from_regex(r"\Asip:[a-z0-9/ ;%+]{1,9}@[a-z.]{1,9}\Z"),
        st.lists(_NAME, min_size=1, max_size=8),
    )
)
def test_a_built_path_is_read_back(uri: XcapUri) -> None:
    """STYLE: parse(build(x)) == x."""
    assert parse_xcap_uri(build_xcap_uri(uri, "/root"), "/root") == uri


@given(st.binary(max_size=80) | st.text("/%~.:@aug2F\u00e9\udcff?", max_size=80) | st.text(st.characters(codec=None), max_size=40))
def test_any_path_gives_a_document_or_a_status(path: bytes | str) -> None:
    """STYLE: parser property."""
    texts = (
        (path, b"/a/users/" + path, b"/a/global/" + path) if isinstance(path, bytes) else (path, f"/a/users/{path}", f"/a/global/{path}")
    )
    for text in texts:
        try:
            parse_xcap_uri(text, "")
        except RemoteProtocolError as problem:
            assert problem.status in {400, 404, 414, 501}


@pytest.mark.parametrize("piece", ["/", "%", "%2", "%41", ":", "@", "~~/", "a", "\u00e9"])
def test_hostile_paths_take_no_time(piece: str) -> None:
    """Linear."""
    with costs_under(0.1):
        with pytest.raises(RemoteProtocolError):
            parse_xcap_uri("/a/users/" + piece * 64_000, "")
        with pytest.raises(RemoteProtocolError):
            parse_xcap_uri(("/a/users/" + piece * MAX_PATH)[: MAX_PATH // 2] + "/..", "")
