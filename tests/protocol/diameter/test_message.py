# SPDX-License-Identifier: Apache-2.0
"""RFC 6733 §3, §4: framing, held to the library's codec, and to what no peer may bring about."""

from __future__ import annotations

import struct
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from diameter.message import Message
from diameter.message.avp import Avp as LibraryAvp
from diameter.message.avp import AvpGrouped
from diameter.message.avp.dictionary import AVP_DICTIONARY, AVP_VENDOR_DICTIONARY
from hypothesis import given, settings
from hypothesis import strategies as st

from keyferry.errors import LocalProtocolError, ParseError
from keyferry.protocol.diameter.cx_fields import PUBLIC_IDENTITY, SIP_AUTH_DATA_ITEM
from keyferry.protocol.diameter.message import (
    FAILED_AVP,
    MAX_AVPS,
    MAX_DEPTH,
    MAX_FIRST,
    MAX_MESSAGE,
    VENDOR_3GPP,
    Avp,
    AvpFault,
    DiameterMessage,
    Framer,
    constant,
    first,
    frame_length,
    make_avp,
    parse_header,
    parse_message,
    render_avps,
    render_message,
    split,
)
from protocol.diameter.cxkit import KEYS, every_message

EVERY = every_message()
GROUP = 260  # Vendor-Specific-Application-Id, which is Grouped
LIMIT = 0.5  # seconds of the processor, for the worst of one MiB; some 0.01 on a machine that does nothing else


def raw(code: int, data: bytes, *, vendor: int | None = None, flags: int = 0x40, length: int | None = None) -> bytes:
    """Put an AVP together without the code under test."""
    head = 8 if vendor is None else 12
    word = (flags | (0 if vendor is None else 0x80)) << 24 | (head + len(data) if length is None else length)
    return struct.pack(">II", code, word) + (b"" if vendor is None else struct.pack(">I", vendor)) + data + bytes(-len(data) % 4)


def framed(body: bytes, *, version: int = 1, flags: int = 0x80, code: int = 999, length: int | None = None) -> bytes:
    """Put a message together without the code under test."""
    size = 20 + len(body) if length is None else length
    return struct.pack(">IIIII", version << 24 | size, flags << 24 | code, 16_777_216, 3, 4) + body


def tree(avps: Any) -> list[Any]:
    """Return what the library's or our AVPs say."""
    found = []
    for avp in avps:
        ours = isinstance(avp, Avp)
        inside = list(avp.group) if ours else (avp.value if isinstance(avp, AvpGrouped) and avp.code != 279 else [])
        found.append((avp.code, avp.vendor if ours else avp.vendor_id, avp.flags, avp.data if ours else avp.payload, tree(inside)))
    return found


class TestFraming:
    """RFC 6733 §3, §4.1."""

    @pytest.mark.parametrize("name", EVERY)
    def test_a_message_is_read_back(self, name: str) -> None:
        octets = render_message(EVERY[name])
        assert len(octets) % 4 == 0
        again = parse_message(octets)
        assert render_message(again) == octets
        if again.first(FAILED_AVP) is None:  # whose inside stays octets
            assert again == EVERY[name]

    @pytest.mark.parametrize("name", EVERY)
    def test_the_library_reads_the_same(self, name: str) -> None:
        """Its codec shares nothing with our framing."""
        octets = render_message(EVERY[name])
        theirs = Message.from_bytes(octets, plain_msg=True)
        ours = parse_message(octets)
        assert tree(theirs.avps) == tree(ours.avps)
        assert theirs.as_bytes() == octets
        header = theirs.header
        assert (header.command_code, header.application_id, header.is_request, header.is_proxyable, header.is_error) == (
            ours.code, ours.application, ours.request, ours.proxiable, ours.error,
        )  # fmt: skip
        assert (header.hop_by_hop_identifier, header.end_to_end_identifier) == (ours.hop_by_hop, ours.end_to_end)

    def test_an_avp_octet_by_octet(self) -> None:
        assert render_avps([make_avp(1, 0, "abcde")]).hex() == "000000014000000d6162636465000000"
        assert render_avps([make_avp(601, VENDOR_3GPP, "sip:a")]).hex() == "00000259c0000011000028af7369703a61000000"

    def test_a_constant_is_rendered_once_and_alike(self) -> None:
        for avp in (make_avp(1, 0, "abcde"), make_avp(GROUP, 0, (make_avp(266, 0, 10415),)), make_avp(601, VENDOR_3GPP, "sip:a")):
            made = constant(avp)
            assert made.wire == render_avps([avp]) == render_avps([made])
            assert made == avp
            assert "abcde" not in repr(made)

    def test_every_flag_of_the_header(self) -> None:
        message = DiameterMessage(257, 0, True, (), proxiable=True, error=True, retransmitted=True, hop_by_hop=1, end_to_end=2)
        assert render_message(message).hex() == "01000014f0000101000000000000000100000002"
        assert parse_message(render_message(message)) == message
        for bit, name in ((0x80, "request"), (0x40, "proxiable"), (0x20, "error"), (0x10, "retransmitted")):
            read = parse_message(framed(b"", flags=bit))
            assert [field for field in ("request", "proxiable", "error", "retransmitted") if getattr(read, field)] == [name]
        assert parse_message(framed(b"", flags=0x8F)) == parse_message(framed(b"", flags=0x80))  # reserved bits are ignored

    def test_a_vendor_id_of_zero_stays_as_it_came(self) -> None:
        """The library drops it, and the octets after it become the data."""
        octets = framed(raw(1, b"a@b", vendor=0))
        (avp,) = parse_message(octets).avps
        assert (avp.code, avp.vendor, avp.data) == (1, 0, b"a@b")
        assert render_message(parse_message(octets)) == octets

    def test_the_last_avp_of_a_group_may_lack_its_padding(self) -> None:
        """Some peers leave it out of the group's length."""
        inside = raw(266, struct.pack(">I", 10415)) + raw(1, b"abcde")[:-3]
        (group,) = parse_message(framed(raw(GROUP, inside))).avps
        assert [avp.data for avp in group.group] == [struct.pack(">I", 10415), b"abcde"]

    def test_a_header_alone(self) -> None:
        octets = framed(b"\xff" * 8, code=303)
        head = parse_header(octets)
        assert (head.code, head.request, head.hop_by_hop, head.end_to_end, head.avps) == (303, True, 3, 4, ())
        with pytest.raises(AvpFault):
            parse_message(octets)
        for none in (b"", octets[:19], framed(b"", version=3)):
            with pytest.raises(ParseError):
                parse_header(none)

    def test_other_identifiers(self) -> None:
        message = EVERY["MAR"].with_ids(8, 9, retransmitted=True)
        assert (message.hop_by_hop, message.end_to_end, message.retransmitted, message.avps) == (8, 9, True, EVERY["MAR"].avps)


class TestRefused:
    """What is no message."""

    @pytest.mark.parametrize(
        "octets",
        [
            b"",
            b"\x01\0\0",
            framed(b"")[:19],
            framed(b"", version=2),
            framed(b"", version=0),
            framed(b"", length=24),
            framed(b"", length=16),
            framed(b"", length=21),
            framed(b"") + b"\0\0\0\0",
            framed(b"", length=MAX_MESSAGE + 4),
        ],
    )
    def test_a_header_that_is_wrong_ends_the_connection(self, octets: bytes) -> None:
        with pytest.raises(ParseError) as problem:
            parse_message(octets)
        assert not isinstance(problem.value, AvpFault)

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"\0\0\0\1", 5014),
            (raw(1, b"", length=7), 5014),
            (raw(1, b"", length=0), 5014),
            (raw(1, b"abcd", length=13), 5014),
            (raw(1, b"", length=0xFF_FFFF), 5014),
            (struct.pack(">II", 601, 0xC0 << 24 | 12), 5014),  # the vendor's octets are cut
            (raw(601, b"", vendor=VENDOR_3GPP, length=11), 5014),
            (raw(GROUP, b"\0\0\0\0"), 5014),
            (raw(GROUP, raw(266, b"", length=12)), 5014),
        ],
    )
    def test_an_avp_that_is_wrong_can_be_answered(self, body: bytes, code: int) -> None:
        """RFC 6733 §7.1.5: INVALID_AVP_LENGTH."""
        with pytest.raises(AvpFault) as fault:
            parse_message(framed(body))
        assert fault.value.code == code

    def test_groups_are_so_deep_and_no_deeper(self) -> None:
        body = b""
        for _ in range(MAX_DEPTH - 1):
            body = raw(GROUP, body)
        avps = parse_message(framed(body)).avps
        depth = 0
        while avps:
            avps, depth = avps[0].group, depth + 1
        assert depth == MAX_DEPTH - 1
        with pytest.raises(AvpFault, match="deeper"):
            parse_message(framed(raw(GROUP, body)))

    def test_so_many_avps_and_no_more_those_in_groups_too(self) -> None:
        assert len(parse_message(framed(raw(1, b"") * MAX_AVPS)).avps) == MAX_AVPS
        for body in (raw(1, b"") * (MAX_AVPS + 1), raw(GROUP, raw(1, b"") * MAX_AVPS), raw(GROUP, raw(1, b"") * 300) * 2):
            with pytest.raises(AvpFault, match=f"more than {MAX_AVPS}"):
                parse_message(framed(body))

    def test_what_is_too_long_is_not_sent(self) -> None:
        full = make_avp(606, VENDOR_3GPP, bytes(MAX_MESSAGE - 20 - 12))
        assert len(render_message(DiameterMessage(303, 0, True, (full,)))) == MAX_MESSAGE
        with pytest.raises(LocalProtocolError):
            render_message(DiameterMessage(303, 0, True, (full, make_avp(1, 0, ""))))


class TestStream:
    """Messages behind each other."""

    def test_what_is_whole_and_what_is_not(self) -> None:
        one, two = render_message(EVERY["MAR"]), render_message(EVERY["DWR"])
        assert split(one + two + one[:9]) == ([one, two], one[:9])
        assert split(b"\x01\0") == ([], b"\x01\0")
        assert split(b"") == ([], b"")

    def test_octet_by_octet(self) -> None:
        octets = b"".join(render_message(message) for message in EVERY.values())
        framer = Framer()
        frames = [frame for at in range(len(octets)) for frame in framer.feed(octets[at : at + 1])]
        assert frames == [render_message(message) for message in EVERY.values()]
        assert framer.rest == b""

    @pytest.mark.parametrize("head", [b"\2\0\0\x14", b"\1\0\0\x10", b"\1\0\0\x15", b"\1\x10\0\4", b"\1\xff\xff\xff"])
    def test_a_head_that_is_none_ends_it_at_once(self, head: bytes) -> None:
        with pytest.raises(ParseError):
            split(render_message(EVERY["DWR"]) + head)
        with pytest.raises(ParseError):
            frame_length(head)

    def test_who_has_not_said_who_it_is_gets_less_room(self) -> None:
        cer = render_message(EVERY["CER"])
        framer = Framer(MAX_FIRST)
        assert framer.feed(cer) == [cer]
        with pytest.raises(ParseError):
            Framer(MAX_FIRST).feed((1 << 24 | MAX_FIRST + 4).to_bytes(4, "big"))
        framer.limit = MAX_MESSAGE
        assert framer.feed((1 << 24 | MAX_FIRST + 4).to_bytes(4, "big")) == []

    def test_small_pieces_of_a_long_message_cost_no_more_than_once(self) -> None:
        octets = framed(raw(1, bytes(MAX_MESSAGE - 28)))
        framer, began = Framer(), time.process_time()
        frames = [frame for at in range(0, len(octets), 16) for frame in framer.feed(octets[at : at + 16])]
        assert frames == [octets]
        assert time.process_time() - began < 10 * LIMIT


class TestValues:
    """The types of the dictionary (RFC 6733 §4.2, §4.3)."""

    @pytest.mark.parametrize(
        ("code", "vendor", "value"),
        [
            (1, 0, "user@home1.net"),
            (264, 0, b"hss.home1.net"),
            (266, 0, 10415),
            (268, 0, 2001),
            (268, 0, -1),
            (257, 0, "192.0.2.1"),
            (257, 0, "2001:db8::1"),
            (287, 0, 2**40),
            (55, 0, datetime(2026, 11, 28, tzinfo=UTC)),
            (606, VENDOR_3GPP, b"\0\xff"),
            (602, VENDOR_3GPP, "sip:ä"),
        ],
    )
    def test_a_value_is_encoded_as_the_library_does(self, code: int, vendor: int, value: Any) -> None:
        theirs = LibraryAvp.new(code, vendor, value=value)
        ours = make_avp(code, vendor, value)
        assert render_avps([ours]) == theirs.as_bytes()
        assert ours.value == theirs.value
        assert ours.name == theirs.name

    def test_every_type_of_the_dictionary_takes_what_it_gives(self) -> None:
        """Four or eight octets of zero are a value of each type that is not text."""
        kinds: dict[type[LibraryAvp], tuple[int, int]] = {}
        for vendor, entries in ((0, AVP_DICTIONARY), *AVP_VENDOR_DICTIONARY.items()):
            for code, entry in entries.items():
                kinds.setdefault(entry["type"], (code, vendor))
        assert len(kinds) >= 11
        for kind, (code, vendor) in kinds.items():
            octets = {"AvpAddress": b"\0\1\x7f\0\0\1", "AvpGrouped": b""}.get(kind.__name__, bytes(8 if "64" in kind.__name__ else 4))
            value = Avp(code, vendor, octets, 0x40).value
            given_value = value[1] if kind.__name__ == "AvpAddress" else value
            assert make_avp(code, vendor, given_value).data == octets, kind

    @pytest.mark.parametrize(
        ("code", "vendor", "value"),
        [
            (1, 0, 5),
            (266, 0, "5"),
            (266, 0, -1),
            (266, 0, 2**32),
            (268, 0, 2**32),
            (264, 0, 5),
            (257, 0, "1.2.3"),
            (GROUP, 0, 5),
            (1, 0, "\ud800"),
        ],
    )
    def test_a_value_of_another_type_is_our_mistake_and_is_not_told(self, code: int, vendor: int, value: Any) -> None:
        with pytest.raises(LocalProtocolError) as problem:
            make_avp(code, vendor, value)
        assert problem.value.__cause__ is None
        assert problem.value.__suppress_context__
        assert "1.2.3" not in str(problem.value)

    def test_what_the_dictionary_does_not_know_is_octets(self) -> None:
        avp = make_avp(40_000, 40_000, b"x", mandatory=True)
        assert (avp.flags, avp.name, avp.value, avp.mandatory) == (0xC0, "AVP 40000 of vendor 40000", b"x", True)
        assert make_avp(40_000, 0, b"x").flags == 0

    def test_text(self) -> None:
        assert Avp(1, 0, "ä@b".encode(), 0x40).text == "ä@b"
        for octets in (b"\xff", b"a\nb", b"a\0", b"\x1b[2J", "\u202e".encode()):
            with pytest.raises(AvpFault) as fault:
                _ = Avp(1, 0, octets, 0x40).text
            assert fault.value.code == 5004
            assert fault.value.failed is not None

    def test_numbers(self) -> None:
        assert Avp(268, 0, b"\xff\xff\xff\xff", 0x40).number == 2**32 - 1
        for octets in (b"", b"\0\0\1", b"\0\0\0\0\1"):
            with pytest.raises(AvpFault) as fault:
                _ = Avp(268, 0, octets, 0x40).number
            assert fault.value.code == 5014

    @pytest.mark.parametrize(
        ("code", "octets"),
        [(257, b""), (257, b"\0\1\x7f"), (257, b"\0\2\0"), (257, b"\0\x08\xff"), (55, b"\0"), (287, b"\0\0\0\0"), (1, b"\xff"), (266, b"")],
    )
    def test_octets_that_are_no_value_are_not_told(self, code: int, octets: bytes) -> None:
        """The library raises whatever comes, with the octets in its text."""
        with pytest.raises(AvpFault) as fault:
            _ = Avp(code, 0, octets, 0x40).value
        assert fault.value.__suppress_context__
        assert "xff" not in str(fault.value)

    def test_first_and_all(self) -> None:
        message = EVERY["SAR"]
        assert [avp.text for avp in message.all(PUBLIC_IDENTITY, VENDOR_3GPP)] == ["sip:user1_public1@home1.net", "tel:+4930123456"]
        assert message.first(PUBLIC_IDENTITY) is None
        assert first(message.avps, PUBLIC_IDENTITY, VENDOR_3GPP) is message.all(PUBLIC_IDENTITY, VENDOR_3GPP)[0]


def test_no_octet_of_a_value_prints() -> None:
    """Keys, identities, profiles: a log that gets a message shows names, flags and lengths."""
    message = parse_message(render_message(EVERY["MAA"]))
    texts = [f"{message!r} {message}", f"{message.avps!r} {message.avps}", f"{message.first(SIP_AUTH_DATA_ITEM, VENDOR_3GPP)}"]
    for text in texts:
        for key in KEYS:
            assert key.reveal().hex() not in text
            assert repr(key.reveal())[2:-1] not in text
        assert "user1" not in text
    assert "<3GPP-SIP-Auth-Data-Item VM 168 octets>" in texts[0]
    assert texts[0].startswith("<Diameter 303 of application 16777216 -P--: <Session-Id -M 20 octets>, ")
    assert repr(DiameterMessage(280, 0, True, error=True, retransmitted=True)) == "<Diameter 280 of application 0 R-ET: no AVPs>"


class TestFuzz:
    """Any octets give a message or ParseError, soon."""

    @settings(max_examples=300)
    @given(st.binary(max_size=200))
    def test_octets(self, octets: bytes) -> None:
        read(octets)

    @settings(max_examples=500)
    @given(st.binary(max_size=200).map(lambda body: body + bytes(-len(body) % 4)))
    def test_octets_behind_a_good_header(self, body: bytes) -> None:
        read(framed(body))

    @settings(max_examples=1_000)
    @given(st.sampled_from(sorted(EVERY)), st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=4))
    def test_good_messages_with_octets_changed(self, name: str, changes: list[tuple[int, int]]) -> None:
        octets = bytearray(render_message(EVERY[name]))
        for at, value in changes:
            octets[at % len(octets)] = value
        read(bytes(octets))

    @settings(max_examples=300)
    @given(st.sampled_from(sorted(EVERY)), st.integers(20, 600), st.binary(max_size=40), st.integers(0, 40))
    def test_good_messages_with_octets_put_in_or_taken_out(self, name: str, at: int, more: bytes, fewer: int) -> None:
        octets = render_message(EVERY[name])
        body = octets[20:at] + more + octets[at + fewer :]
        read(octets[:1] + (20 + len(body)).to_bytes(3, "big") + octets[4:20] + body)

    @settings(max_examples=200)
    @given(st.lists(st.binary(min_size=1, max_size=60), max_size=30))
    def test_a_stream_in_pieces_is_the_stream_whole(self, pieces: list[bytes]) -> None:
        framer, frames = Framer(), []
        try:
            for piece in pieces:
                frames += framer.feed(piece)
        except ParseError:
            with pytest.raises(ParseError):
                split(b"".join(pieces))
        else:
            assert (frames, framer.rest) == split(b"".join(pieces))

    @pytest.mark.parametrize(
        "body",
        [
            raw(1, b"") * ((MAX_MESSAGE - 20) // 8),
            raw(GROUP, raw(1, b"") * ((MAX_MESSAGE - 28) // 8)),
            raw(1, bytes(MAX_MESSAGE - 28)),
            b"".join(struct.pack(">II", GROUP, 0x40 << 24 | (1 << 19) - 8 * at) for at in range(60_000)) + bytes(1 << 19),
            raw(GROUP, raw(GROUP, raw(GROUP, raw(GROUP, raw(GROUP, raw(GROUP, raw(GROUP, bytes(900_000)))))))),
        ],
        ids=["many", "many in a group", "long", "deep", "deep and long"],
    )
    def test_the_worst_of_a_mib_takes_no_longer(self, body: bytes) -> None:
        octets = framed(body)
        began = time.process_time()
        read(octets[:1] + len(octets).to_bytes(3, "big") + octets[4:])
        assert time.process_time() - began < LIMIT


def read(octets: bytes) -> None:
    """Read octets as a message, and every value in it."""
    try:
        message = parse_message(octets)
    except ParseError:
        return
    assert parse_message(render_message(message)) == message
    todo = list(message.avps)
    while todo:
        avp = todo.pop()
        todo += avp.group
        for name in ("text", "number", "value"):
            try:
                getattr(avp, name)
            except ParseError:
                continue
