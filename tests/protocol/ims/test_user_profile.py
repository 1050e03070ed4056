# SPDX-License-Identifier: Apache-2.0
"""The Cx user profile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import ParseError
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.ifc import (
    ApplicationServer,
    InitialFilterCriteria,
    OnMethod,
    OnRequestUri,
    OnSessionCase,
    OnSessionDescription,
    OnSipHeader,
    ServicePointTrigger,
    TriggerPoint,
)
from keyferry.protocol.ims.user_profile import (
    MAX_SHAPE,
    MAX_USER_DATA,
    ServiceProfile,
    UserProfile,
    build_user_profile,
    criteria_of,
    impus_for,
    naf_of,
    parse_user_profile,
)

DOCUMENT = b"""<?xml version="1.0" encoding="UTF-8"?>
<IMSSubscription xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:noNamespaceSchemaLocation="CxDataType_Rel17.xsd">
  <!-- a subscription as an HSS writes it -->
  <PrivateID>user1_private@home1.net</PrivateID>
  <ServiceProfile>
    <PublicIdentity><BarringIndication>1</BarringIndication><Identity>sip:001010000000001@home1.net</Identity></PublicIdentity>
    <PublicIdentity><Identity>sip:User1_Public1@HOME1.net;user=phone</Identity><Extension><IdentityType>0</IdentityType></Extension></PublicIdentity>
    <PublicIdentity><BarringIndication>0</BarringIndication><Identity> tel:+49-172-1 </Identity></PublicIdentity>
    <PublicIdentity><Identity>sip:service!.*!@home1.net</Identity><Extension><IdentityType>2</IdentityType><WildcardedPSI>x</WildcardedPSI></Extension></PublicIdentity>
    <CoreNetworkServicesAuthorization><SubscribedMediaProfileId>7</SubscribedMediaProfileId></CoreNetworkServicesAuthorization>
    <InitialFilterCriteria>
      <Priority>20</Priority>
      <ApplicationServer><ServerName>sip:as2.home1.net</ServerName><DefaultHandling>1</DefaultHandling></ApplicationServer>
      <ProfilePartIndicator>0</ProfilePartIndicator>
    </InitialFilterCriteria>
    <InitialFilterCriteria>
      <Priority>10</Priority>
      <TriggerPoint>
        <ConditionTypeCNF>1</ConditionTypeCNF>
        <SPT><ConditionNegated>0</ConditionNegated><Group>0</Group><Method>REGISTER</Method>
          <Extension><RegistrationType>0</RegistrationType><RegistrationType>1</RegistrationType></Extension></SPT>
        <SPT><ConditionNegated>1</ConditionNegated><Group>0</Group><Group>1</Group><SIPHeader><Header>Contact</Header><Content>mmtel</Content></SIPHeader></SPT>
        <SPT><Group>1</Group><SessionCase>0</SessionCase></SPT>
        <SPT><Group>1</Group><SessionDescription><Line>m</Line><Content>audio</Content></SessionDescription></SPT>
        <SPT><Group>1</Group><RequestURI>home1\\.net</RequestURI></SPT>
      </TriggerPoint>
      <ApplicationServer><ServerName>sip:as1.home1.net:5065;transport=tcp</ServerName><DefaultHandling>0</DefaultHandling>
        <ServiceInfo>naf=xcap.home1.net</ServiceInfo><Extension><IncludeRegisterRequest/><IncludeRegisterResponse/></Extension></ApplicationServer>
    </InitialFilterCriteria>
    <Extension><SharedIFCSetID>3</SharedIFCSetID><SharedIFCSetID>5</SharedIFCSetID></Extension>
  </ServiceProfile>
  <ServiceProfile><PublicIdentity><Identity>sip:other@home1.net</Identity></PublicIdentity></ServiceProfile>
</IMSSubscription>"""


def test_a_profile_as_an_hss_writes_it_is_read() -> None:
    """TS 29.228 annex E."""
    user = parse_user_profile(DOCUMENT)
    first, second = user.profiles
    assert user.impi == "user1_private@home1.net"
    assert user.ignored == 1
    assert first.impus == (("sip:001010000000001@home1.net", True), ("sip:User1_Public1@home1.net", False), ("tel:+491721", False))
    assert user.impus == ("sip:User1_Public1@home1.net", "tel:+491721", "sip:other@home1.net")
    assert first.shared_ifc_sets == (3, 5)
    one, other = first.criteria
    assert (one.priority, other.priority) == (10, 20)
    assert one.application_server == ApplicationServer("sip:as1.home1.net:5065;transport=tcp", 0, "naf=xcap.home1.net", True, True)
    assert one.trigger == TriggerPoint(
        True,
        (
            ServicePointTrigger(OnMethod("REGISTER", (0, 1))),
            ServicePointTrigger(OnSipHeader("Contact", "mmtel"), (0, 1), negated=True),
            ServicePointTrigger(OnSessionCase(0), (1,)),
            ServicePointTrigger(OnSessionDescription("m", "audio"), (1,)),
            ServicePointTrigger(OnRequestUri("home1\\.net"), (1,)),
        ),
    )
    assert other == InitialFilterCriteria(20, None, ApplicationServer("sip:as2.home1.net", 1), 0)
    assert second == ServiceProfile(((Impu("sip:other@home1.net"), False),))
    assert user.profile_of(Impu("tel:+491721")) is first
    assert user.profile_of(Impu("sip:001010000000001@home1.net")) is first
    assert user.profile_of(Impu("sip:nobody@home1.net")) is None


def profile(criterion: str = "", identity: str = "<Identity>sip:a@h.net</Identity>", rest: str = "", impi: str = "a@h.net") -> bytes:
    return (
        f"<IMSSubscription><PrivateID>{impi}</PrivateID><ServiceProfile><PublicIdentity>{identity}</PublicIdentity>"
        f"{criterion}{rest}</ServiceProfile></IMSSubscription>"
    ).encode()


def criterion(
    trigger: str = "", priority: str = "<Priority>1</Priority>", server: str = "<ServerName>sip:as.h.net</ServerName>", rest: str = ""
) -> str:
    return f"<InitialFilterCriteria>{priority}{trigger}<ApplicationServer>{server}</ApplicationServer>{rest}</InitialFilterCriteria>"


def spt(inside: str) -> str:
    return criterion(f"<TriggerPoint><ConditionTypeCNF>0</ConditionTypeCNF><SPT>{inside}</SPT></TriggerPoint>")


@pytest.mark.parametrize(
    "bad",
    [
        criterion("<TriggerPoint><ConditionTypeCNF>1</ConditionTypeCNF></TriggerPoint>"),
        criterion("<TriggerPoint><SPT><Group>0</Group><Method>X</Method></SPT></TriggerPoint>"),
        criterion("<TriggerPoint/><TriggerPoint/>"),
        criterion(priority=""),
        criterion(priority="<Priority>-1</Priority>"),
        criterion(priority="<Priority>1e3</Priority>"),
        criterion(priority="<Priority>9999999999</Priority>"),
        criterion(priority="<Priority>1<!-- 2 --></Priority>"),
        criterion(server=""),
        criterion(server="<ServerName><x/></ServerName>"),
        criterion(server="<ServerName>sip:a</ServerName><ServerName>sip:b</ServerName>"),
        criterion(server="<ServerName>sip:a</ServerName><DefaultHandling>2</DefaultHandling>"),
        criterion(rest="<ProfilePartIndicator>2</ProfilePartIndicator>"),
        spt("<Group>0</Group>"),
        spt("<Group>0</Group><Method>X</Method><SessionCase>0</SessionCase>"),
        spt("<Group>x</Group><Method>X</Method>"),
        spt("<ConditionNegated>maybe</ConditionNegated><Method>X</Method>"),
        spt("<SIPHeader><Content>x</Content></SIPHeader>"),
        spt("<SIPHeader><Header>x</Header><Content>(</Content></SIPHeader>"),
        spt("<SessionDescription><Line>[</Line></SessionDescription>"),
        spt("<RequestURI>a{999}</RequestURI>"),
        spt("<Method>REGISTER</Method><Extension><RegistrationType>3</RegistrationType></Extension>"),
        spt("<Group>0</Group>" * 17 + "<Method>X</Method>"),
        "<InitialFilterCriteria><Priority>1</Priority></InitialFilterCriteria>",
    ],
)
def test_a_criterion_that_cannot_be_understood_costs_no_registration(bad: str) -> None:
    """It is left out and counted: an AND of nothing, or a wrong pattern, must not send a request anywhere."""
    user = parse_user_profile(profile(bad + criterion()))
    assert (len(user.profiles[0].criteria), user.ignored) == (1, 1)


@pytest.mark.parametrize(
    "identity",
    [
        "",
        "<Identity>sip:psi.h.net</Identity>",
        "<Identity>mailto:a@h</Identity>",
        "<Identity/>",
        "<Identity>sip:a@h.net</Identity><Extension><IdentityType>3</IdentityType></Extension>",
    ],
)
def test_an_identity_that_is_none_is_left_out(identity: str) -> None:
    """TS 29.228 annex E: wildcarded identities are patterns."""
    user = parse_user_profile(profile(identity=identity))
    assert (user.impus, user.ignored) == ((), 1)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<x/>",
        b"<IMSSubscription/>",
        b"<IMSSubscription><PrivateID>a@h</PrivateID></IMSSubscription>",
        b"<IMSSubscription><ServiceProfile/></IMSSubscription>",
        b"<!DOCTYPE x><IMSSubscription/>",
        profile(impi="no realm"),
        profile().replace(b"</PrivateID>", b"</PrivateID><PrivateID>b@h</PrivateID>"),
        profile(rest="<Extension><SharedIFCSetID>x</SharedIFCSetID></Extension>"),
        profile(rest="<Extension/><Extension/>"),
        profile(criterion() * 101),
        profile(rest="<PublicIdentity/>" * 100),
        b"<IMSSubscription><PrivateID>a@h</PrivateID>" + b"<ServiceProfile/>" * 101 + b"</IMSSubscription>",
        b" " * (MAX_USER_DATA + 1),
    ],
)
def test_what_is_no_user_profile_is_refused(document: bytes) -> None:
    """TS 29.228 annex E."""
    with pytest.raises(ParseError):
        parse_user_profile(document)


def test_shared_sets_join_by_priority() -> None:
    """TS 29.228 §6.1.2: the sets are configured at the S-CSCF."""
    servers = {n: InitialFilterCriteria(n, None, ApplicationServer(f"sip:as{n}.h.net")) for n in range(5)}
    mine = ServiceProfile(((Impu("sip:a@h"), False),), (servers[1], servers[3]), (7, 8, 9))
    assert [one.priority for one in criteria_of(mine, {7: (servers[4], servers[0]), 9: (servers[2],)})] == [0, 1, 2, 3, 4]


def test_an_as_is_told_of_no_more_identities_than_its_criteria_hold_for() -> None:
    """DESIGN §6."""
    wanted = InitialFilterCriteria(1, None, ApplicationServer("sip:as1"))
    other = InitialFilterCriteria(1, None, ApplicationServer("sip:as2"))
    a, b, c, d, e = (Impu(f"sip:{name}@h") for name in "abcde")
    user = UserProfile(
        Impi("x@h"),
        (
            ServiceProfile(((a, True), (b, False)), (wanted,)),
            ServiceProfile(((c, False),), (other,)),
            ServiceProfile(((d, False), (b, False)), (), (1,)),
            ServiceProfile(((e, False),)),
        ),
    )
    shared = {1: (wanted,)}
    assert impus_for(user, shared, lambda one: one.application_server.server_name == "sip:as1") == (b, d)
    assert impus_for(user, shared, lambda _: False) == ()


def test_naf_words_name_application_servers() -> None:
    """DESIGN §6."""
    assert naf_of("naf=xcap.home1.net") == ("xcap.home1.net",)
    assert naf_of("level=3; naf=XCAP.home1.net. , naf=notes.home1.net naf=xcap.home1.net") == ("xcap.home1.net", "notes.home1.net")
    assert naf_of(None) == naf_of("") == naf_of("banana") == naf_of("xnaf=a.net naf=") == naf_of("naf=10.0.0.1 naf=-x") == ()
    assert len(naf_of(" ".join(f"naf=a{i}.net" for i in range(99)))) == 16


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"), max_size=20)
PATTERN = st.sampled_from(["", "a.*b", "<&>", "^x$", "[[:digit:]]+"])
CONDITIONS = st.one_of(
    st.builds(OnRequestUri, PATTERN),
    st.builds(OnMethod, st.sampled_from(["REGISTER", "INVITE"]), st.lists(st.integers(0, 2), max_size=3).map(tuple)),
    st.builds(OnSipHeader, PATTERN, st.none() | PATTERN),
    st.builds(OnSessionCase, st.integers(0, 4)),
    st.builds(OnSessionDescription, PATTERN, st.none() | PATTERN),
)
TRIGGERS = st.builds(ServicePointTrigger, CONDITIONS, st.lists(st.integers(0, 99), min_size=1, max_size=3).map(tuple), st.booleans())
CRITERIA = st.builds(
    InitialFilterCriteria,
    st.integers(0, 999),
    st.none() | st.builds(TriggerPoint, st.booleans(), st.lists(TRIGGERS, min_size=1, max_size=3).map(tuple)),
    st.builds(
        ApplicationServer,
        st.sampled_from(["sip:as1.h.net", "sip:a;x=<&>"]),
        st.integers(0, 1),
        st.none() | TEXT,
        st.booleans(),
        st.booleans(),
    ),
    st.none() | st.integers(0, 1),
)
PROFILES = st.builds(
    ServiceProfile,
    st.lists(st.tuples(st.sampled_from(["sip:a@h.net", "tel:+1", "sip:o'b&c@h.net:5060"]), st.booleans()), max_size=3).map(tuple),
    st.lists(CRITERIA, max_size=3).map(lambda some: tuple(sorted(some, key=lambda one: one.priority))),
    st.lists(st.integers(0, 99), max_size=2).map(tuple),
)


@given(st.builds(UserProfile, st.just("a@h.net"), st.lists(PROFILES, min_size=1, max_size=2).map(tuple)))
def test_a_profile_that_was_built_is_read_back(user: UserProfile) -> None:
    """Reverse of parse_user_profile."""
    assert parse_user_profile(build_user_profile(user)) == user


@given(st.data())
def test_any_octets_give_a_profile_or_a_parse_error(data: st.DataObject) -> None:
    """STYLE §4."""
    octets = bytearray(DOCUMENT)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(octets) - 1))
        octets[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=5))
    try:
        user = parse_user_profile(bytes(octets))
    except ParseError:
        return
    assert parse_user_profile(build_user_profile(user)).profiles == user.profiles


def test_the_largest_profile_takes_no_time() -> None:
    """TS 29.228 gives no limits, so we do."""
    with costs_under(0.5):
        user = parse_user_profile(
            profile(spt("<Method>INVITE</Method>") * 100, rest="<PublicIdentity><Identity>sip:a@h</Identity></PublicIdentity>" * 99)
        )
        assert len(user.profiles[0].criteria) == 100


def shaped(first: str, second: str, impi: str = "a@home1.net", *, info: str = "naf=xcap.home1.net") -> bytes:
    """Return User-Data with two identities as they are written."""
    return (
        f"<IMSSubscription><PrivateID>{impi}</PrivateID><ServiceProfile><PublicIdentity><Identity>{first}</Identity></PublicIdentity>"
        f"<PublicIdentity><BarringIndication>1</BarringIndication><Identity>{second}</Identity></PublicIdentity><InitialFilterCriteria>"
        f"<Priority>0</Priority><ApplicationServer><ServerName>sip:as</ServerName><ServiceInfo>{info}</ServiceInfo></ApplicationServer>"
        "</InitialFilterCriteria></ServiceProfile></IMSSubscription>"
    ).encode()


def test_users_of_one_shape_keep_their_own_identities() -> None:
    for user in ("a", "b", "a"):
        profile = parse_user_profile(shaped(f"sip:{user}@HOME1.net", "tel:+15550001", f"{user}@home1.net"))
        assert profile.impi == f"{user}@home1.net"
        assert profile.profiles[0].impus == ((f"sip:{user}@home1.net", False), ("tel:+15550001", True))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("sip:1@placeholder.invalid", "sip:1@placeholder.invalid"),
        ("sip:1@PLACEHOLDER.invalid", "sip:1@placeholder.invalid"),
        ("sip:1@placeholder&#46;invalid", "sip:1@placeholder.invalid"),
        ("sip:1@\uff50laceholder.invalid", "sip:1@placeholder.invalid"),
        ("sip:a&amp;b@home1.net", "sip:a&b@home1.net"),
        ("<![CDATA[sip:c@home1.net]]>", "sip:c@home1.net"),
        (" sip:d@home1.net\n", "sip:d@home1.net"),
    ],
)
def test_no_writing_of_an_identity_passes_for_a_place_of_the_shape(written: str, read: str) -> None:
    """Users share a shape, never an identity."""
    profile = parse_user_profile(shaped(written, "sip:z@home1.net"))
    assert profile.profiles[0].impus == ((read, False), ("sip:z@home1.net", True))


def test_an_identity_that_cannot_be_read_costs_itself_only() -> None:
    parse_user_profile(shaped("sip:a@home1.net", "sip:b@home1.net"))
    profile = parse_user_profile(shaped("mailto:a@home1.net", "sip:b@home1.net"))
    assert (profile.profiles[0].impus, profile.ignored) == ((("sip:b@home1.net", True),), 1)
    with pytest.raises(ParseError):
        parse_user_profile(shaped("sip:a@home1.net", "sip:b@home1.net", "no impi"))


def test_a_shape_too_long_to_be_remembered_is_read_all_the_same() -> None:
    profile = parse_user_profile(shaped("sip:a@home1.net", "sip:b@home1.net", info="x" * MAX_SHAPE))
    assert profile.impus == ("sip:a@home1.net",)
