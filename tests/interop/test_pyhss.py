# SPDX-License-Identifier: Apache-2.0
"""PyHSS as the HSS of our P-, I- and S-CSCF, over Cx (TS 29.229), where KEYFERRY_PYHSS names a copy of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from interop.capturing import capturing
from interop.peers import program, pyhss
from system.serving import Lab, Served, free_port, keyferry, make_lab, serving, ue, until

pytestmark = pytest.mark.interop

REALM = "ims.mnc001.mcc001.3gppnetwork.org"
IMSI, MSISDN = "001010000000001", "15550100001"
K, OPC = "465b5ce8b199b49faa5f0a2ee238a6bc", "cd63cb71954a9f4e48a5994e37a02baf"
DOCUMENT = f"simservs.ngn.etsi.org/users/sip:{MSISDN}@{REALM}/simservs.xml"
LIMIT = 60.0  # seconds
CONFIG = """
hss:
  transport: TCP
  bind_ip: ["127.0.0.1"]
  bind_port: {diameter}
  OriginHost: hss01
  OriginRealm: {realm}
  ProductName: PyHSS
  site_name: ""
  MCC: "001"
  MNC: "01"
  CancelLocationRequest_Enabled: False
  scscf_pool: ["sip:scscf1.{realm}:{scscf}"]
api: {{bind_ip: 127.0.0.1, bind_port: {api}, page_size: 200, enable_insecure_auc: False}}
benchmarking: {{enabled: False, reporting_interval: 3600}}
eir: {{imsi_imei_logging: False, no_match_response: 2, store_offnet_imsi: False}}
logging: {{level: INFO, sqlalchemy_sql_echo: False}}
database: {{db_type: sqlite, database: {folder}/hss.db}}
webhooks: {{enabled: False, endpoints: []}}
ocs: {{enabled: False, endpoints: []}}
geored: {{enabled: False, sync_actions: [], endpoints: []}}
redis: {{connectionType: tcp, host: 127.0.0.1, port: {redis}}}
influxdb: {{enabled: False}}
snmp: {{port: 0, listen_address: 127.0.0.1}}
"""


@dataclass(frozen=True, slots=True)
class PyHss:
    """One that runs, with a subscriber."""

    api: int
    auc: int

    def put_sqn(self, sqn: int) -> None:
        """Let its next vector have this SQN."""
        _api(self.api, "PATCH", f"/auc/{self.auc}", {"sqn": sqn})

    def subscriber(self) -> Any:
        """Return what it says of the subscriber."""
        return _api(self.api, "GET", f"/ims_subscriber/ims_subscriber_imsi/{IMSI}")


def test_a_ue_registers_renews_resynchronises_and_leaves_with_pyhss(tmp_path: Path) -> None:
    copy, python = pyhss()
    hss_port = free_port()
    lab = make_lab(tmp_path, lambda text: _of_pyhss(text, hss_port), _ue_of_pyhss)
    with running_pyhss(copy, python, tmp_path / "pyhss", lab, hss_port) as hss, serving(lab.serve, lab.state) as served:
        until(lambda: all(served.health()["hss"].values()), seconds=LIMIT, what="I-CSCF and S-CSCF have found PyHSS")
        for _ in range(2):
            assert ue(lab, "register")["keys"]
            assert _writes_and_reads(lab)
        assert hss.subscriber()["scscf"] == f"sip:scscf1.{REALM}:{lab.ports['6060']}"
        hss.put_sqn(32)  # which the card has seen: it answers with AUTS
        assert ue(lab, "register")["keys"]
        assert _writes_and_reads(lab)
        assert hss.subscriber()["scscf"]
        ue(lab, "deregister")
        assert hss.subscriber()["scscf"] is None
        _check_the_end(lab, served)


def test_who_is_not_in_pyhss_is_forbidden_and_tshark_finds_nothing_malformed(tmp_path: Path) -> None:
    """TS 24.229 §5.3.1.2: DIAMETER_ERROR_USER_UNKNOWN is a 403."""
    copy, python = pyhss()
    hss_port = free_port()
    lab = make_lab(tmp_path, lambda text: _of_pyhss(text, hss_port), _ue_of_pyhss)
    unknown = tmp_path / "unknown.toml"
    unknown.write_text(lab.ue.read_text().replace(IMSI, IMSI[:-1] + "2"))
    with running_pyhss(copy, python, tmp_path / "pyhss", lab, hss_port), capturing(tmp_path / "cx.pcapng", f"tcp port {hss_port}") as file:
        with serving(lab.serve, lab.state) as served:
            until(lambda: all(served.health()["hss"].values()), seconds=LIMIT, what="I-CSCF and S-CSCF have found PyHSS")
            assert ue(lab, "register")["keys"]
            refused = keyferry("ue", "register", "--config", unknown, "--state", tmp_path / "unknown", "--json")
            assert refused.returncode != 0
            assert json.loads(refused.stdout)["status"] == 403, refused.stdout
            ue(lab, "deregister")
        ends = "diameter.cmd.code == 282 && diameter.flags.request == 0"
        until(lambda: len(_frames(hss_port, file, ends)) >= 2, seconds=LIMIT, what="both connections have ended with a DPA")
        for code in (*range(300, 302), 303):
            assert _frames(hss_port, file, f"diameter.cmd.code == {code} && diameter.flags.request == 0"), code
        odd = "_ws.malformed || diameter.avp.invalid-data || diameter.avp.invalid-len || _ws.expert.severity >= 0x00600000"
        assert _frames(hss_port, file, f"diameter && ({odd})") == []


def _frames(port: int, file: Path, where: str) -> list[str]:
    """Return the summaries of the frames that a display filter selects."""
    command = [program("tshark"), "-r", str(file), "-d", f"tcp.port=={port},diameter", "-Y", where]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False).stdout.splitlines()


def _check_the_end(lab: Lab, served: Served) -> None:
    assert served.health()["registrations"] == 0
    assert keyferry("ue", "get", DOCUMENT, "--config", lab.ue, "--state", lab.state).returncode != 0
    counted = dict(re.findall(r'keyferry_cx_requests_total{reason="([^"]*)"} (.*)', served.admin("/metrics")[1]))
    assert set(counted) == {"UAR SUCCESS", "MAR SUCCESS", "SAR SUCCESS"}
    assert float(counted["MAR SUCCESS"]) == float(counted["SAR SUCCESS"]) + 1  # one had AUTS


def _of_pyhss(text: str, port: int) -> str:
    """Return a lab.toml of PyHSS's realm, without subscribers."""
    ours, _, _ = text.partition("# K and OPc below")
    return ours.replace("home1.net", REALM) + f'\n[cx]\npeers = ["aaa://127.0.0.1:{port}"]\n'


def _ue_of_pyhss(text: str) -> str:
    known = text.replace("user1_private@home1.net", f"{IMSI}@{REALM}").replace("sip:user1_public1@home1.net", f"sip:{IMSI}@{REALM}")
    return known.replace("home1.net", REALM)


@contextmanager
def running_pyhss(copy: Path, python: str, folder: Path, lab: Lab, port: int) -> Iterator[PyHss]:
    """Run redis and PyHSS's services with a configuration, a database and an iFC template of their own."""
    working = folder / "services"  # templates are looked for above the working directory
    working.mkdir(parents=True)
    api, redis = free_port(), free_port()
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(diameter=port, realm=REALM, scscf=lab.ports["6060"], api=api, folder=folder, redis=redis))
    (folder / "ifc.xml").write_text(_template((copy / "default_ifc.xml").read_text("utf-8"), lab))
    settings = {**os.environ, "PYHSS_CONFIG": str(config), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    store = [program("redis-server"), "--bind", "127.0.0.1", "--port", str(redis), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with ExitStack() as stack:
        stack.enter_context(_program(store, working, settings))
        _listens(redis, "redis")
        for service, listens in (("hssService", 0), ("diameterService", port), ("apiService", api)):
            stack.enter_context(_program([python, str(copy / "services" / f"{service}.py")], working, settings))
            if listens:
                _listens(listens, service)
            else:
                log = working.parent / f"{service}.log"
                until(lambda: "Initialized" in log.read_text(), seconds=LIMIT, what="hssService has made its tables")  # noqa: B023
        yield PyHss(api, _provision(api))


def _template(theirs: str, lab: Lab) -> str:
    """Return PyHSS's own template, in which the receivers of REGISTERs are our application servers."""
    where = "mnc{{ iFC_vars['mnc'] }}.mcc{{ iFC_vars['mcc'] }}.3gppnetwork.org:5060"
    for name, ours, port in (("applicationserver", "xcap-as", "5090"), ("smsc", "notes-as", "5091")):
        assert f"sip:{name}.{where}" in theirs, "PyHSS's default_ifc.xml is another"
        theirs = theirs.replace(f"sip:{name}.{where}", f"sip:{ours}.{REALM}:{lab.ports[port]}")
    return theirs


@contextmanager
def _program(command: list[str], folder: Path, settings: dict[str, str]) -> Iterator[None]:
    name = Path(command[0] if len(command) > 2 else command[1]).stem
    with (
        (folder.parent / f"{name}.log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, env=settings, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield
        finally:
            process.kill()


def _listens(port: int, what: str) -> None:
    def tried() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    until(tried, seconds=LIMIT, what=f"{what} listens")


def _provision(api: int) -> int:
    """Make a subscriber as PyHSS's documentation says: AuC, APN, subscriber, IMS subscriber; give the AuC's number."""
    auc = _api(api, "PUT", "/auc/", {"ki": K, "opc": OPC, "amf": "8000", "sqn": 96, "imsi": IMSI})["auc_id"]
    apn = _api(api, "PUT", "/apn/", {"apn": "ims", "apn_ambr_dl": 9999, "apn_ambr_ul": 9999})["apn_id"]
    of_lte = {"imsi": IMSI, "enabled": True, "auc_id": auc, "default_apn": apn, "apn_list": str(apn), "msisdn": MSISDN}
    _api(api, "PUT", "/subscriber/", of_lte)
    _api(api, "PUT", "/ims_subscriber/", {"imsi": IMSI, "msisdn": MSISDN, "msisdn_list": MSISDN, "ifc_path": "ifc.xml"})
    return int(auc)


def _api(port: int, method: str, path: str, body: dict[str, object] | None = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode("utf-8")
        assert response.status == 200, text
        return json.loads(text)
    finally:
        connection.close()


def _writes_and_reads(lab: Lab) -> bool:
    body = lab.serve.with_name("simservs.xml")
    body.write_text('<?xml version="1.0"?>\n<simservs xmlns="http://uri.etsi.org/ngn/params/xml/simservs/xcap"/>\n')
    put = keyferry("ue", "put", DOCUMENT, str(body), "--config", lab.ue, "--state", lab.state, "--json")
    assert put.returncode == 0, put.stdout + put.stderr
    got = keyferry("ue", "get", DOCUMENT, "--config", lab.ue, "--state", lab.state)
    return got.returncode == 0 and "simservs" in got.stdout
