# SPDX-License-Identifier: Apache-2.0
"""A network of separate processes as its operator sees it: one id for a registration in every log, /ready, /metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from keyferry.protocol.ims.verdicts import Reason
from system.serving import EVENT_LIMIT, Lab, Served, free_port, in_clear, make_lab, outlive_this_second, serving, ue, until

FUNCTIONS = ("pcscf", "icscf", "scscf", "as", "hss")
SPEAKERS = {"pcscf": "P-CSCF", "icscf": "I-CSCF", "scscf": "S-CSCF"}
DOCUMENT = "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml"


def apart(folder: Path, diameter: int | None = None) -> Lab:
    """The example's network, its functions found by the hosts table: nobody else tells where they are. The HSS at a port for Diameter."""
    hosts = {
        "icscf.home1.net": "5062", "scscf1.home1.net": "6060", "pcscf1.home1.net": "5060",
        "xcap-as.home1.net": "5090", "notes-as.home1.net": "5091",
    }  # fmt: skip
    lines = "".join(f'"{name}" = "127.0.0.1:{port}"\n' for name, port in hosts.items())
    lines += f'[hss]\nlisten_diameter = "127.0.0.1:{diameter}"\n[cx]\npeers = ["aaa://127.0.0.1:{diameter}"]\n' if diameter else ""
    return make_lab(folder, lambda text: f"{text}\n[hosts]\n{lines}".replace("127.0.0.1:8080", "127.0.0.1:0"), in_clear)


def process_of(lab: Lab, role: str) -> AbstractContextManager[Served]:
    """Serve one function, with an administrator's listener and a log of its own."""
    return serving(lab.serve, lab.state, "--role", role, "--role", "admin", "--log", "json", log=lab.state.with_name(f"{role}.log"))


@pytest.fixture
def network(tmp_path: Path) -> Iterator[tuple[Lab, dict[str, Served]]]:
    """One process for each function, its log beside the state directory, which they share."""
    lab = apart(tmp_path, free_port())
    with ExitStack() as stack:
        yield lab, {role: stack.enter_context(process_of(lab, role)) for role in reversed(FUNCTIONS)}


def lines_of(served: Served, id_: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in served.log.read_text().splitlines()]
    return [line for line in found if line.get("id") == id_]


def registered(served: Served) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, served.log.read_text().splitlines()) if line["event"] == "registered"]


def answers(served: Served, function: str, id_: str) -> list[int]:
    """Return what a function has answered to the REGISTERs of one registration, as its log says."""

    def two() -> list[int]:
        found = [line["status"] for line in lines_of(served, id_) if line["event"] == "register" and line["function"] == function]
        return found if len(found) > 1 else []

    return until(two, seconds=EVENT_LIMIT, what=f"two lines of {function}")


def test_one_registration_has_one_id_in_the_log_of_every_process(network: tuple[Lab, dict[str, Served]]) -> None:
    """First REGISTER and its answer, at P-, I- and S-CSCF, HSS, and at each AS that got a key; the next one has another id."""
    lab, processes = network
    ids: list[str] = []
    for _ in range(2):
        ue(lab, "register")
        found = until(lambda: registered(processes["scscf"])[len(ids) :], seconds=EVENT_LIMIT, what="the S-CSCF says that it registered")
        ids.append(found[0]["id"])
    assert len(ids[0]) == 32
    assert ids[0] != ids[1]
    for id_ in ids:
        for role, name in SPEAKERS.items():
            assert answers(processes[role], name, id_) == [401, 200], role
        asked = {role: [line["command"] for line in lines_of(processes[role], id_) if line["event"] == "cx"] for role in processes}
        assert (asked["scscf"], asked["icscf"], asked["hss"]) == (["MAR", "SAR"], ["UAR", "UAR"], ["UAR", "MAR", "UAR", "SAR"])
        pushes = [
            line["server"] for line in lines_of(processes["scscf"], id_) if line["event"] == "push" and line["outcome"] == "delivered"
        ]
        assert sorted(uri.partition(":")[2].partition(".")[0] for uri in pushes) == ["notes-as", "xcap-as"]
        assert sorted(line["as_id"] for line in lines_of(processes["as"], id_) if line["event"] == "push-taken") == [
            "notes.home1.net", "xcap.home1.net",
        ]  # fmt: skip


def ready(served: Served) -> tuple[int, dict[str, Any]]:
    status, body = served.admin("/ready")
    told: dict[str, Any] = json.loads(body)
    return status, told


def test_a_function_is_ready_when_what_it_needs_is(tmp_path: Path) -> None:
    """A P-CSCF without its I-CSCF, an I-CSCF without its S-CSCF: 503, which says what is missing. To be alive is another thing."""
    lab = apart(tmp_path)
    with process_of(lab, "pcscf") as pcscf:
        assert ready(pcscf) == (503, {"ready": False, "reasons": ["I-CSCF: does not answer"]})
        assert pcscf.health()["ok"] is True
        with process_of(lab, "icscf") as icscf:
            until(lambda: ready(pcscf)[0] == 200, seconds=EVENT_LIMIT, what="the P-CSCF is ready")
            assert ready(icscf) == (503, {"ready": False, "reasons": ["S-CSCF scscf1.home1.net: does not answer"]})
            with process_of(lab, "scscf") as scscf:
                assert ready(scscf) == (200, {"ready": True})
                until(lambda: ready(icscf) == (200, {"ready": True}), seconds=EVENT_LIMIT, what="the I-CSCF is ready")


def samples(served: Served) -> dict[str, float]:
    """Return what /metrics shows, by the whole left side of each line."""
    status, body = served.admin("/metrics")
    assert status == 200
    lines = [line for line in body.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_of_every_function(network: tuple[Lab, dict[str, Served]]) -> None:
    """What the dashboard shows, after one registration and two requests; no label names a user."""
    lab, processes = network
    outlive_this_second()
    ue(lab, "register")
    ue(lab, "get", DOCUMENT)
    shown = {role: samples(served) for role, served in processes.items()}
    for role, name in SPEAKERS.items():
        for outcome in ("challenged", "accepted"):
            assert shown[role][f'keyferry_sip_register_seconds_count{{function="{name}",outcome="{outcome}"}}'] == 1
        assert shown[role][f'keyferry_sip_shedding{{function="{name}"}}'] == 0
    scscf, appserver = shown["scscf"], shown["as"]
    assert scscf['keyferry_registrations{scscf="scscf1.home1.net"}'] == 1
    failures = {name: value for name, value in scscf.items() if name.startswith("keyferry_scscf_failures_total")}
    assert failures == {f'keyferry_scscf_failures_total{{reason="{reason.value}"}}': 0 for reason in Reason}
    for role in ("scscf", "hss"):
        assert shown[role]['keyferry_cx_seconds_count{command="MAR",outcome="success"}'] == 1
    for server in (name for name in scscf if name.startswith("keyferry_isc_pushes_pending")):
        assert scscf[server] == 0
    assert sum(value for name, value in scscf.items() if "isc_push_seconds_count" in name and 'outcome="delivered"' in name) == 2
    assert appserver['keyferry_as_keys{as_id="xcap.home1.net"}'] == 1
    assert 0 <= appserver['keyferry_as_oldest_key_seconds{as_id="xcap.home1.net"}'] < 60
    labels = 'as_id="xcap.home1.net"'
    assert appserver[f'keyferry_http_responses_total{{{labels},class="2xx",mechanism="first-nonce"}}'] == 1
    assert appserver[f'keyferry_http_request_seconds_count{{{labels},class="2xx"}}'] == 1
    assert appserver[f"keyferry_door_check_seconds_count{{{labels}}}"] == 1
    for metrics in shown.values():
        assert metrics["keyferry_ready"] == 1
        assert metrics["process_start_time_seconds"] > 0
        assert any(name.startswith("keyferry_certificate_not_after_seconds{") for name in metrics)
        assert not any("user1" in name or "private" in name for name in metrics)
