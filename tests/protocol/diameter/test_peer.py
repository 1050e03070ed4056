# SPDX-License-Identifier: Apache-2.0
"""RFC 6733 §5.3 to §5.6, RFC 3539 §3.4.1: one connection, as ladders (input, then the actions), and two machines against each other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keyferry.errors import LocalProtocolError
from keyferry.protocol.diameter import base, peer
from keyferry.protocol.diameter.base import Application, DiameterIdentity, DisconnectCause, Identifiers, PeerCapabilities, ResultCode
from keyferry.protocol.diameter.message import DiameterMessage, make_avp, parse_message, render_message
from keyferry.protocol.diameter.peer import (
    TRANSITIONS,
    Action,
    Deliver,
    Ended,
    EndReason,
    Input,
    Opened,
    PeerMachine,
    PeerTimers,
    Resumed,
    Send,
    State,
    Suspended,
)
from protocol.diameter.cxkit import HSS, SCSCF, answers, requests

TIMERS = PeerTimers(watchdog=30.0, capabilities=10.0, disconnect=5.0)
CER = base.build_cer(SCSCF, ["192.0.2.1"]).with_ids(1, 1)
CEA = base.build_cea(CER, HSS, ["192.0.2.2"])
DWR, DPR = base.build_dwr(HSS).with_ids(8, 8), base.build_dpr(HSS, DisconnectCause.BUSY).with_ids(9, 9)
MAA = answers()["MAA"]
MAR = DiameterMessage(303, base.CX, True, tuple(avp for avp in requests()["MAR"].avps if avp.code != base.DESTINATION_HOST))


def dialled(**options: bool) -> PeerMachine:
    """Return a machine that has sent its CER at 0."""
    machine = PeerMachine(
        SCSCF, Identifiers(100, 200), dials=True, addresses=["192.0.2.1"], timers=TIMERS, after_failure=options.get("after", False)
    )
    machine.start(0.0)
    return machine


def accepted(identity: DiameterIdentity = HSS) -> PeerMachine:
    """Return a machine that waits for a CER since 0."""
    machine = PeerMachine(identity, Identifiers(100, 200), dials=False, addresses=["192.0.2.2"], timers=TIMERS)
    assert machine.start(0.0) == []
    return machine


def opened(*ticks: float) -> PeerMachine:
    """Return one that dialled, open at 0, after these ticks."""
    machine = dialled()
    machine.received(CEA, 0.0)
    for now in ticks:
        machine.tick(now)
    return machine


def names(actions: Sequence[Action]) -> list[str]:
    """Return actions in short: "send 280R"."""
    found = []
    for action in actions:
        name = type(action).__name__.lower()
        if isinstance(action, (Send, Deliver)):
            name += f" {action.message.code}{'R' if action.message.request else 'A'}"
        if isinstance(action, Ended):
            name += f" {action.reason.value}"
        found.append(name)
    return found


def answered(machine: PeerMachine, now: float) -> list[Action]:
    """Give a machine the answer to its watchdog."""
    return machine.received(base.build_dwa(base.build_dwr(SCSCF).with_ids(101, 201), HSS), now)


def result(action: Action) -> int:
    """Return the result of an answer that is sent."""
    assert isinstance(action, Send)
    return base.result_of(action.message).code


class TestCapabilities:
    """RFC 6733 §5.3, §5.6."""

    def test_who_dials_sends_a_cer_and_is_open_with_the_cea(self) -> None:
        machine = PeerMachine(SCSCF, Identifiers(100, 200), dials=True, addresses=["192.0.2.1"])
        (sent,) = machine.start(0.0)
        assert isinstance(sent, Send)
        assert (sent.message.code, sent.message.request, sent.message.hop_by_hop, sent.message.end_to_end) == (257, True, 101, 201)
        assert (machine.state, machine.usable, machine.deadline) == (State.WAIT_CEA, False, 10.0)
        (action,) = machine.received(CEA, 1.0)
        assert isinstance(action, Opened)
        assert (action.peer.origin_host, action.applications, action.usable) == ("hss.home1.net", frozenset({base.CX}), True)
        assert (machine.usable, machine.deadline, machine.applications) == (True, 31.0, frozenset({base.CX}))

    def test_who_is_dialled_answers_the_cer_and_is_open(self) -> None:
        machine = accepted()
        cea, action = machine.received(CER, 1.0)
        assert result(cea) == 2001
        assert isinstance(action, Opened)
        assert action.peer.origin_host == "scscf1.home1.net"
        assert machine.usable

    def test_no_common_application_is_5010_and_the_end(self) -> None:
        identity = DiameterIdentity("hss.home1.net", "home1.net", applications=(Application(4, 0),))
        cea, end = accepted(identity).received(CER, 1.0)
        assert result(cea) == 5010
        assert end == Ended(EndReason.REFUSED_BY_US, 5010)
        machine = dialled()
        assert machine.received(base.build_cea(CER, identity, ["192.0.2.2"]), 1.0) == [Ended(EndReason.NO_COMMON_APPLICATION)]
        assert (machine.state, machine.deadline) == (State.CLOSED, None)

    def test_a_relay_has_every_application(self) -> None:
        relay = DiameterIdentity("dra.home1.net", "home1.net", applications=(Application(base.RELAY, 0),))
        machine = dialled()
        machine.received(base.build_cea(CER, relay, ["192.0.2.2"]), 1.0)
        assert machine.applications == {base.CX}

    def test_who_is_not_admitted_is_3010_and_the_end(self) -> None:
        seen: list[PeerCapabilities] = []

        def nobody(capabilities: PeerCapabilities) -> bool:
            seen.append(capabilities)
            return False

        machine = PeerMachine(HSS, Identifiers(1, 1), dials=False, addresses=["192.0.2.2"], admit=nobody)
        machine.start(0.0)
        cea, end = machine.received(CER, 1.0)
        assert (result(cea), end) == (3010, Ended(EndReason.REFUSED_BY_US, 3010))
        assert seen[0].origin_host == "scscf1.home1.net"
        machine = PeerMachine(SCSCF, Identifiers(1, 1), dials=True, addresses=["192.0.2.1"], admit=nobody)
        machine.start(0.0)
        assert machine.received(CEA, 1.0) == [Ended(EndReason.WRONG_PEER)]

    def test_a_cea_that_refuses(self) -> None:
        assert dialled().received(base.build_cea(CER, HSS, [], 3010), 1.0) == [Ended(EndReason.REFUSED, 3010)]

    def test_a_cer_of_nobody_is_answered_and_a_cea_of_nobody_is_not(self) -> None:
        nameless = DiameterMessage(257, 0, True, CER.avps[1:])
        cea, end = accepted().received(nameless, 1.0)
        assert (result(cea), end) == (5005, Ended(EndReason.REFUSED_BY_US, 5005))
        for avps in ((), CEA.avps[:1]):
            assert dialled().received(DiameterMessage(257, 0, False, avps), 1.0) == [Ended(EndReason.OUT_OF_STEP)]

    @pytest.mark.parametrize("message", [MAR, MAA, DWR, CER, base.build_dwa(DWR, HSS), DPR])
    def test_nothing_but_a_cea_is_waited_for(self, message: DiameterMessage) -> None:
        assert dialled().received(message, 1.0) == [Ended(EndReason.OUT_OF_STEP)]

    @pytest.mark.parametrize("message", [MAR, MAA, DWR, CEA, DPR])
    def test_nothing_but_a_cer_is_waited_for(self, message: DiameterMessage) -> None:
        """An application is not even told of one who has not said who he is."""
        assert accepted().received(message, 1.0) == [Ended(EndReason.OUT_OF_STEP)]

    @pytest.mark.parametrize("machine", [dialled(), accepted()])
    def test_it_does_not_wait_for_ever(self, machine: PeerMachine) -> None:
        assert machine.tick(9.9) == []
        assert machine.tick(10.0) == [Ended(EndReason.TIMEOUT)]

    def test_a_cer_of_the_same_peer_is_answered_again_and_of_another_is_the_end(self) -> None:
        """§5.6, I-Open: I-Rcv-CER."""
        machine = accepted()
        machine.received(CER, 1.0)
        assert names(machine.received(CER, 2.0)) == ["send 257A"]
        other = base.build_cer(DiameterIdentity("scscf2.home1.net", "home1.net"), ["192.0.2.3"])
        assert machine.received(other, 3.0) == [Ended(EndReason.OUT_OF_STEP)]
        machine = accepted()
        machine.received(CER, 1.0)
        assert machine.received(DiameterMessage(257, 0, True), 3.0) == [Ended(EndReason.OUT_OF_STEP)]

    def test_a_late_cea_is_passed_over(self) -> None:
        assert opened().received(CEA, 1.0) == []


class TestWatchdog:
    """RFC 3539 §3.4.1."""

    def test_silence_is_a_watchdog_then_a_suspicion_then_the_end(self) -> None:
        machine = opened()
        assert machine.tick(29.9) == []
        assert names(machine.tick(30.0)) == ["send 280R"]
        assert (machine.usable, machine.deadline) == (True, 60.0)
        assert machine.tick(60.0) == [Suspended()]
        assert (machine.state, machine.usable, machine.deadline) == (State.SUSPECT, False, 90.0)
        assert machine.tick(90.0) == [Ended(EndReason.WATCHDOG)]
        assert (machine.state, machine.deadline) == (State.CLOSED, None)

    def test_an_answer_in_time_is_all_that_is_wanted(self) -> None:
        machine = opened()
        for start in range(0, 300, 35):
            assert names(machine.tick(start + 30.0)) == ["send 280R"]
            assert answered(machine, start + 35.0) == []
            assert machine.deadline == start + 65.0

    def test_any_message_puts_the_watchdog_off(self) -> None:
        machine = opened()
        for now in range(1, 200, 20):
            assert names(machine.received(MAA, float(now))) == ["deliver 303A"]
            assert machine.tick(now + 19.0) == []

    def test_a_late_answer_ends_the_suspicion(self) -> None:
        machine = opened(30.0, 60.0)
        assert answered(machine, 61.0) == [Resumed()]
        assert (machine.usable, machine.deadline) == (True, 91.0)
        assert names(machine.tick(91.0)) == ["send 280R"]  # nothing is pending any more

    @pytest.mark.parametrize(("message", "also"), [(MAA, "deliver 303A"), (DWR, "send 280A"), (MAR, "deliver 303R")])
    def test_any_message_ends_the_suspicion(self, message: DiameterMessage, also: str) -> None:
        machine = opened(30.0, 60.0)
        assert names(machine.received(message, 61.0)) == ["resumed", also]
        assert machine.tick(91.0) == [Suspended()]  # the watchdog is still not answered

    def test_who_leaves_requests_unanswered_is_suspected_at_once_and_asked_whether_it_lives(self) -> None:
        machine = opened()
        assert (names(machine.suspect(10.0)), machine.suspect(11.0)) == (["suspended", "send 280R"], [])
        assert answered(machine, 12.0) == [Resumed()]
        assert (names(machine.tick(42.0)), machine.suspect(43.0)) == (["send 280R"], [Suspended()])
        assert machine.tick(73.0) == [Ended(EndReason.WATCHDOG)]

    def test_a_peer_on_trial_is_used_where_it_has_to_be(self) -> None:
        machine = dialled(after=True)
        machine.received(CEA, 1.0)
        assert (opened().trust(2.0), machine.trust(2.0), machine.usable) == ([], [Resumed()], True)

    def test_a_watchdog_is_answered(self) -> None:
        machine = opened()
        (sent,) = machine.received(DWR, 3.0)
        assert isinstance(sent, Send)
        assert (sent.message.hop_by_hop, sent.message.end_to_end, result(sent)) == (8, 8, 2001)
        assert machine.deadline == 33.0

    def test_an_answer_that_nobody_waits_for_is_passed_over(self) -> None:
        machine = opened()
        assert answered(machine, 1.0) == answered(machine, 2.0) == []

    @pytest.mark.parametrize(("jitter", "tw"), [(-2.0, 28.0), (1.5, 31.5), (-9.0, 28.0), (9.0, 32.0)])
    def test_jitter_keeps_peers_out_of_step(self, jitter: float, tw: float) -> None:
        machine = opened()
        machine.tick(30.0, jitter)
        deadline, _ = machine.deadline, answered(machine, 31.0)
        assert (deadline, machine.deadline) == (30.0 + tw, 31.0 + tw)

    def test_a_watchdog_that_would_flood_is_refused(self) -> None:
        with pytest.raises(LocalProtocolError):
            PeerTimers(watchdog=5.9)
        with pytest.raises(LocalProtocolError):
            PeerTimers(disconnect=0.0)


class TestReopen:
    """RFC 3539 §3.4.1: who failed has to answer three watchdogs first."""

    def test_three_answers(self) -> None:
        machine = dialled(after=True)
        actions = machine.received(CEA, 0.0)
        assert names(actions) == ["opened", "send 280R"]
        assert not machine.usable
        assert isinstance(actions[0], Opened)
        assert not actions[0].usable
        assert answered(machine, 1.0) == []
        assert names(machine.tick(30.0)) == ["send 280R"]
        assert answered(machine, 31.0) == []
        assert names(machine.tick(60.0)) == ["send 280R"]
        assert answered(machine, 61.0) == [Resumed()]
        assert (machine.usable, machine.deadline) == (True, 91.0)

    def test_one_that_is_missed_costs_the_count_and_two_the_connection(self) -> None:
        machine = dialled(after=True)
        machine.received(CEA, 0.0)
        assert machine.tick(30.0) == []
        assert answered(machine, 31.0) == []  # the count is 0 again
        for start in (60.0, 90.0):
            assert names(machine.tick(start)) == ["send 280R"]
            assert answered(machine, start + 1) == []
        assert names(machine.tick(120.0)) == ["send 280R"]
        assert machine.tick(150.0) == []
        assert machine.tick(180.0) == [Ended(EndReason.WATCHDOG)]

    def test_other_messages_do_not_count(self) -> None:
        machine = dialled(after=True)
        machine.received(CEA, 0.0)
        for _ in range(9):
            assert names(machine.received(MAA, 1.0)) == ["deliver 303A"]
        assert machine.deadline == 30.0
        assert not machine.usable


class TestDisconnection:
    """RFC 6733 §5.4."""

    def test_we_leave(self) -> None:
        machine = opened()
        sent, suspended = machine.disconnect(DisconnectCause.REBOOTING, 1.0)
        assert isinstance(sent, Send)
        assert base.parse_dpr(sent.message) is DisconnectCause.REBOOTING
        assert suspended == Suspended()
        assert (machine.state, machine.usable, machine.deadline) == (State.CLOSING, False, 6.0)
        assert names(machine.received(MAA, 2.0)) == ["deliver 303A"]  # somebody waits for it
        assert machine.received(base.build_dpa(sent.message, HSS), 3.0) == [Ended(EndReason.DISCONNECTED)]
        assert machine.received(MAA, 4.0) == []

    def test_we_leave_one_who_does_not_answer(self) -> None:
        machine = opened()
        machine.disconnect(DisconnectCause.REBOOTING, 1.0)
        assert machine.disconnect(DisconnectCause.REBOOTING, 2.0) == []
        assert machine.tick(5.9) == []
        assert machine.tick(6.0) == [Ended(EndReason.DISCONNECTED)]
        assert machine.disconnect(DisconnectCause.REBOOTING, 7.0) == []

    def test_the_peer_leaves(self) -> None:
        machine = opened()
        assert names(machine.received(DPR, 1.0)) == ["send 282A", "suspended"]
        assert machine.received(base.build_dpa(DPR, HSS), 2.0) == []  # it is the peer who closes
        assert machine.lost() == [Ended(EndReason.DISCONNECTED, cause=DisconnectCause.BUSY)]

    def test_the_peer_says_so_and_stays(self) -> None:
        machine = opened()
        machine.received(DPR, 1.0)
        assert machine.tick(6.0) == [Ended(EndReason.DISCONNECTED, cause=DisconnectCause.BUSY)]

    def test_both_leave(self) -> None:
        machine = opened()
        machine.disconnect(DisconnectCause.REBOOTING, 1.0)
        assert names(machine.received(DPR, 1.5)) == ["send 282A"]
        assert machine.received(base.build_dpa(DPR, HSS), 2.0) == [Ended(EndReason.DISCONNECTED)]

    def test_a_request_that_crosses_a_dpr_is_sent_elsewhere(self) -> None:
        """3002, UNABLE_TO_DELIVER: the sender tries another peer."""
        machine = opened()
        machine.disconnect(DisconnectCause.REBOOTING, 1.0)
        (sent,) = machine.received(MAR, 1.5)
        assert result(sent) == 3002
        assert names(machine.received(DWR, 1.6)) == ["send 280A"]

    def test_before_capabilities_there_is_nobody_to_tell(self) -> None:
        for machine in (dialled(), accepted()):
            assert machine.disconnect(DisconnectCause.REBOOTING, 1.0) == [Ended(EndReason.DISCONNECTED)]

    @pytest.mark.parametrize("machine", [dialled(), accepted(), opened(), dialled(after=True)])
    def test_the_transport_is_gone(self, machine: PeerMachine) -> None:
        assert machine.lost() == [Ended(EndReason.LOST)]
        assert machine.lost() == []
        assert machine.tick(1e9) == []
        assert machine.received(CER, 1.0) == []


class TestRequests:
    """RFC 6733 §7.1.3: what is not for us."""

    @pytest.mark.parametrize(
        ("message", "code"),
        [
            (DiameterMessage(316, 16_777_251, True), ResultCode.APPLICATION_UNSUPPORTED),
            (DiameterMessage(271, base.BASE, True), ResultCode.COMMAND_UNSUPPORTED),
            (DiameterMessage(303, base.CX, True, error=True), ResultCode.INVALID_HDR_BITS),
            (DiameterMessage(303, base.CX, True, (make_avp(base.DESTINATION_HOST, 0, "hss2.home1.net"),)), ResultCode.UNABLE_TO_DELIVER),
            (DiameterMessage(303, base.CX, True, (make_avp(base.DESTINATION_REALM, 0, "home2.net"),)), ResultCode.REALM_NOT_SERVED),
        ],
    )
    def test_is_refused(self, message: DiameterMessage, code: int) -> None:
        (sent,) = opened().received(message, 1.0)
        assert isinstance(sent, Send)
        assert (result(sent), sent.message.error) == (code, True)

    def test_and_what_is_goes_on(self) -> None:
        host, realm = make_avp(base.DESTINATION_HOST, 0, "SCSCF1.home1.net"), make_avp(base.DESTINATION_REALM, 0, "Home1.net.")
        for named in ((), (host,), (realm,), (host, realm)):
            request = DiameterMessage(303, base.CX, True, named)
            assert opened().received(request, 1.0) == [Deliver(request)]
        # that a command is unknown to an application, the application says
        unknown = DiameterMessage(399, base.CX, True)
        assert opened().received(unknown, 1.0) == [Deliver(unknown)]

    def test_an_answer_that_nobody_can_wait_for(self) -> None:
        assert opened().received(DiameterMessage(271, base.BASE, False), 1.0) == []

    def test_a_base_command_under_another_application_is_not_one(self) -> None:
        """Else one could be disconnected through a relay."""
        machine = opened()
        message = DiameterMessage(282, base.CX, True, (make_avp(base.DISCONNECT_CAUSE, 0, 0),))
        assert machine.received(message, 1.0) == [Deliver(message)]
        assert machine.usable


def test_every_state_can_end_and_is_reached() -> None:
    assert {state for (state, what) in TRANSITIONS if what is Input.END} == set(State) - {State.CLOSED}
    assert set(TRANSITIONS.values()) | {State.WAIT_CEA, State.WAIT_CER} == set(State)


def test_what_is_not_in_the_table_is_our_mistake() -> None:
    machine = opened()
    with pytest.raises(LocalProtocolError, match="TRUSTED in OPEN"):
        machine._move(Input.TRUSTED)


class Connection(RuleBasedStateMachine):
    """Two machines, a wire that may be slow or cut, a peer that may hang, and a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.wires: dict[str, list[bytes]] = {"scscf": [], "hss": []}  # what is on its way to each
        self.hung: set[str] = set()
        self.log: dict[str, list[Action]] = {"scscf": [], "hss": []}
        self.machines: dict[str, PeerMachine] = {}

    @initialize(after_failure=st.booleans())
    def begin(self, after_failure: bool) -> None:
        client = PeerMachine(SCSCF, Identifiers(0xFFFF_FFFF, 7), dials=True, addresses=["192.0.2.1"], after_failure=after_failure)
        self.machines = {"scscf": client, "hss": PeerMachine(HSS, Identifiers(5, 9), dials=False, addresses=["192.0.2.2"])}
        for name, machine in self.machines.items():
            self.do(name, machine.start(self.now))

    def do(self, name: str, actions: Sequence[Action]) -> None:
        """Carry out what a machine wants."""
        other = "hss" if name == "scscf" else "scscf"
        for action in actions:
            self.log[name].append(action)
            if isinstance(action, Send):
                self.wires[other].append(render_message(action.message))

    @rule(name=st.sampled_from(["scscf", "hss"]), count=st.integers(1, 3))
    def arrives(self, name: str, count: int) -> None:
        for _ in range(count):
            if self.wires[name] and name not in self.hung:
                self.do(name, self.machines[name].received(parse_message(self.wires[name].pop(0)), self.now))

    @rule(seconds=st.sampled_from([0.1, 4.0, 11.0, 31.0]), jitter=st.floats(-2, 2))
    def time_passes(self, seconds: float, jitter: float) -> None:
        self.now += seconds
        for name, machine in self.machines.items():
            if name not in self.hung:
                self.do(name, machine.tick(self.now, jitter))

    @rule(name=st.sampled_from(["scscf", "hss"]), message=st.sampled_from([MAR, MAA, DWR, CER, CEA, DPR, base.build_dpa(DPR, HSS)]))
    def comes_out_of_nowhere(self, name: str, message: DiameterMessage) -> None:
        self.do(name, self.machines[name].received(message, self.now))

    @rule(name=st.sampled_from(["scscf", "hss"]), cause=st.sampled_from(DisconnectCause))
    def leaves(self, name: str, cause: DisconnectCause) -> None:
        self.do(name, self.machines[name].disconnect(cause, self.now))

    @rule(name=st.sampled_from(["scscf", "hss"]))
    def hangs(self, name: str) -> None:
        self.hung ^= {name}

    @precondition(lambda self: self.now > 100)
    @rule()
    def is_cut(self) -> None:
        for name, machine in self.machines.items():
            self.wires[name].clear()
            self.do(name, machine.lost())

    @invariant()
    def what_is_told_is_what_is(self) -> None:
        for name, machine in self.machines.items():
            told = [type(action) for action in self.log[name]]
            assert told.count(Opened) <= 1
            assert told.count(Ended) == (machine.state is State.CLOSED)
            assert Ended not in told or told[-1] is Ended, "nothing is done after the end"
            assert (machine.deadline is None) is (machine.state is State.CLOSED)
            assert machine.usable is self.usable_as_told(name)
            if Deliver in told:
                assert Opened in told[: told.index(Deliver)]

    def usable_as_told(self, name: str) -> bool:
        """Return whether somebody who only reads the actions may send."""
        usable = False
        for action in self.log[name]:
            match action:
                case Opened():
                    usable = action.usable
                case Resumed():
                    assert not usable
                    usable = True
                case Suspended():
                    assert usable
                    usable = False
                case Ended():
                    usable = False
        return usable

    @invariant()
    def one_watchdog_at_a_time(self) -> None:
        """RFC 3539: a DWR goes out at most once in Tw, and none while one is not answered."""
        for name in self.machines:
            sent = sum(isinstance(each, Send) and each.message.request and each.message.code == 280 for each in self.log[name])
            assert sent <= 2 + self.now / (TIMERS.watchdog - peer.MAX_JITTER)


TestConnection = Connection.TestCase
TestConnection.settings = settings(max_examples=150, stateful_step_count=40)
