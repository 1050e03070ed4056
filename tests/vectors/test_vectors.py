# SPDX-License-Identifier: Apache-2.0
"""Run every vector of this folder: a file names what it computes, a function here computes it from the inputs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keyferry.errors import SyncFailure
from keyferry.protocol.aka import AkaAlgorithm, AuthVector, Usim, generate_vector, split_sqn, verify_auts
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.crypto.kdf import kdf
from keyferry.protocol.crypto.milenage import Milenage, derive_opc
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.crypto.tuak import Tuak, derive_topc
from keyferry.protocol.diameter import cx
from keyferry.protocol.diameter.base import DiameterIdentity
from keyferry.protocol.diameter.message import DiameterMessage, parse_message, render_message
from keyferry.protocol.digest import (
    AuthenticationInfo,
    Credentials,
    aka_nonce,
    aka_v2_keys,
    aka_v2_password,
    check_response,
    check_rspauth,
    encode_base64,
    hash_a1,
    parse_aka_nonce,
    respond,
    rspauth_of,
)
from keyferry.protocol.esp import expand_keys
from keyferry.protocol.identity import AsId, Impi, Impu
from keyferry.protocol.ims import keys

Values = dict[str, Any]
FOLDER = Path(__file__).parent


def octets(values: Values, name: str) -> bytes:
    return bytes.fromhex(values[name])


def secret(values: Values, name: str) -> Secret:
    return Secret(octets(values, name))


def functions(algorithm: AkaAlgorithm, given: Values) -> Values:
    """Return f1…f5*, having checked that the fast path gives the same."""
    rand, sqn, amf = octets(given, "rand"), octets(given, "sqn"), octets(given, "amf")
    f1, f2345 = algorithm.f1(rand, sqn, amf), algorithm.f2345(rand)
    assert algorithm.vector(rand, sqn, amf) == (f1, f2345)
    return {
        "f1": f1.hex(),
        "f1_star": algorithm.f1_star(rand, sqn, amf).hex(),
        "f2": f2345.res.reveal().hex(),
        "f3": f2345.ck.reveal().hex(),
        "f4": f2345.ik.reveal().hex(),
        "f5": f2345.ak.hex(),
        "f5_star": algorithm.f5_star(rand).hex(),
    }


def auts_for(algorithm: AkaAlgorithm, sqn_ms: int, rand: bytes, autn: bytes) -> bytes:
    """Let a USIM that stands at `sqn_ms` refuse a challenge, and let the network read its AUTS."""
    seq_ms = [0] * 32
    seq, ind = split_sqn(sqn_ms)
    seq_ms[ind] = seq
    with pytest.raises(SyncFailure) as failure:
        Usim(algorithm, seq_ms).authenticate(rand, autn)
    assert verify_auts(algorithm, rand, failure.value.auts) == sqn_ms
    return failure.value.auts


def milenage(given: Values) -> Values:
    opc = derive_opc(secret(given, "k"), secret(given, "op"))
    algorithm = Milenage(secret(given, "k"), opc)
    sqn = int(given["sqn"], 16)
    vector = generate_vector(algorithm, octets(given, "rand"), sqn, octets(given, "amf"))
    auts = auts_for(algorithm, sqn, vector.rand, vector.autn)
    return functions(algorithm, given) | {"opc": opc.reveal().hex(), "autn": vector.autn.hex(), "auts": auts.hex()}


def tuak(given: Values) -> Values:
    topc = derive_topc(secret(given, "k"), secret(given, "top"), given["iterations"])
    lengths = {name: given[name] for name in ("iterations", "mac_octets", "res_octets", "ck_octets", "ik_octets")}
    return functions(Tuak(secret(given, "k"), topc, **lengths), given) | {"topc": topc.reveal().hex()}


def generic_kdf(given: Values) -> Values:
    parameters = [bytes.fromhex(text) for text in given["parameters"]]
    return {"key": kdf(secret(given, "key"), octets(given, "fc"), *parameters).reveal().hex()}


def answer(given: Values, nonce: str, password: Secret) -> Values:
    """Return HA1, response and rspauth, having checked that the verifier takes both."""
    algorithm = given["algorithm"]
    ha1 = hash_a1(algorithm, given["username"], given["realm"], password)
    qop, nc, cnonce = given.get("qop"), given.get("nc"), given.get("cnonce")
    response = respond(algorithm, ha1, method=given["method"], uri=given["uri"], nonce=nonce, qop=qop, nc=nc, cnonce=cnonce)
    credentials = Credentials(
        given["username"], given["realm"], nonce, given["uri"], response, algorithm=algorithm, qop=qop, nc=nc, cnonce=cnonce
    )
    check_response(ha1, credentials, algorithm=algorithm, method=given["method"])
    rspauth = rspauth_of(ha1, credentials, algorithm=algorithm)
    check_rspauth(AuthenticationInfo(rspauth, qop, cnonce, nc), ha1, credentials, algorithm=algorithm)
    return {"ha1": ha1.reveal().decode(), "response": response, "rspauth": rspauth}


def digest(given: Values) -> Values:
    return answer(given, given["nonce"], Secret(given["password"].encode()))


def digest_aka(given: Values) -> Values:
    nonce = aka_nonce(octets(given, "rand"), octets(given, "autn"), octets(given, "server_data"))
    assert parse_aka_nonce(nonce) == (octets(given, "rand"), octets(given, "autn"), octets(given, "server_data"))
    res, ck, ik = secret(given, "res"), secret(given, "ck"), secret(given, "ik")
    ck_prime, ik_prime = aka_v2_keys(given["algorithm"], ck, ik)
    result: Values = {"nonce": nonce, "ck_prime": ck_prime.reveal().hex(), "ik_prime": ik_prime.reveal().hex()}
    password = aka_v2_password(given["algorithm"], res, ck, ik) if "v2" in given["algorithm"] else res
    if "sqn_ms" in given:
        password = Secret(b"")
        algorithm = Milenage(secret(given, "k"), secret(given, "opc"))
        result["auts"] = encode_base64(auts_for(algorithm, int(given["sqn_ms"], 16), octets(given, "rand"), octets(given, "autn")))
    # HA2 is no output of ours: this only checks the vector itself.
    ha2 = hashlib.new(given["algorithm"].partition("-")[2].replace("-", ""), f"{given['method']}:{given['uri']}".encode()).hexdigest()
    return result | answer(given, nonce, password) | {"password": password.reveal().hex(), "ha2": ha2}


def key_hierarchy(given: Values) -> Values:
    ck, ik, rand, ua_id = secret(given, "ck"), secret(given, "ik"), octets(given, "rand"), octets(given, "ua_id")
    impi, as_id, realm = Impi(given["impi"]), AsId(given["as_id"]), given["realm"]
    access = keys.access_keys(ck, ik, rand, impi)
    k_m = keys.application_master_key(ck, ik, rand, impi)
    k_as = keys.as_key(k_m, as_id)
    k_ua = keys.ua_key(k_as, ua_id)
    key_id = keys.key_id(k_as, realm)
    keys.check_key_id(key_id, k_as, realm)
    return {
        "ck_prime": access.ck.reveal().hex(),
        "ik_prime": access.ik.reveal().hex(),
        "k_m": k_m.reveal().hex(),
        "k_as": k_as.reveal().hex(),
        "k_ua": k_ua.reveal().hex(),
        "digest_password": keys.digest_password(k_ua).reveal().decode(),
        "first_nonce": keys.first_nonce(k_ua),
        "key_id": key_id,
        "psk_identity": keys.psk_identity(ua_id, key_id),
    }


def seal(given: Values) -> Values:
    siv, associated = Siv(secret(given, "key")), [text.encode() for text in given["associated"]]
    sealed = siv.seal(given["plaintext"].encode(), associated)
    assert siv.open(sealed, associated) == given["plaintext"].encode()
    return {"sealed": base64.b64encode(sealed).decode()}


def esp_keys(given: Values) -> Values:
    ck, ik = secret(given, "ck"), secret(given, "ik")
    cbc, null = (expand_keys(ck, ik, alg="hmac-sha-1-96", ealg=ealg) for ealg in ("aes-cbc", "null"))
    assert cbc.integrity == null.integrity
    return {
        "hmac_sha_1_96": cbc.integrity.reveal().hex(),
        "aes_cbc": cbc.encryption.reveal().hex(),
        "null": null.encryption.reveal().hex(),
    }


def diameter(given: Values) -> Values:
    """Return a message, having checked that it is read as it was meant."""
    identity = DiameterIdentity(given["origin_host"], given["origin_realm"])
    route = cx.Route(identity, given["session_id"], given["destination_realm"])
    message = {"LIR": location_info_request, "MAA": multimedia_auth_answer}[given["command"]](given, route)
    octets = render_message(message)
    assert parse_message(octets) == message
    return {"octets": octets.hex()}


def location_info_request(given: Values, route: cx.Route) -> DiameterMessage:
    lir = cx.Lir(Impu(given["impu"]))
    message = cx.build_lir(lir, route).with_ids(given["hop_by_hop"], given["end_to_end"])
    assert cx.parse_lir(message) == lir
    return message


def multimedia_auth_answer(given: Values, route: cx.Route) -> DiameterMessage:
    impi, impu = Impi(given["impi"]), Impu(given["impu"])
    vector = AuthVector(octets(given, "rand"), octets(given, "autn"), secret(given, "xres"), secret(given, "ck"), secret(given, "ik"))
    request = cx.build_mar(cx.Mar(impi, impu, given["server_name"]), route).with_ids(given["hop_by_hop"], given["end_to_end"])
    message = cx.build_maa(request, cx.Maa(impi, impu, (cx.AuthItem(vector),)), route.identity)
    assert cx.parse_maa(message).items[0].vector == vector
    return message


COMPUTES: dict[str, Callable[[Values], Values]] = {
    "milenage": milenage,
    "tuak": tuak,
    "kdf": generic_kdf,
    "digest": digest,
    "digest_aka": digest_aka,
    "keys": key_hierarchy,
    "seal": seal,
    "esp_keys": esp_keys,
    "diameter": diameter,
}


def load() -> list[Any]:
    cases = []
    for path in sorted(FOLDER.glob("*.toml")):
        contents = tomllib.loads(path.read_text("utf-8"))
        if contents["computes"] in COMPUTES:
            cases += [pytest.param(contents["computes"], vector, id=f"{path.stem}:{vector['id']}") for vector in contents["vector"]]
    return cases


@pytest.mark.parametrize(("computes", "vector"), load())
def test_the_outputs_are_those_of_the_vector(computes: str, vector: Values) -> None:
    computed = COMPUTES[computes](vector["input"])
    assert vector["source"]
    assert {name: computed[name] for name in vector["output"]} == vector["output"]


def test_no_file_of_vectors_is_left_out() -> None:
    assert {tomllib.loads(path.read_text("utf-8"))["computes"] for path in FOLDER.glob("*.toml")} == set(COMPUTES)


def test_the_key_hierarchy_agrees_with_the_bare_formula() -> None:
    """An independent computation, with nothing but HMAC, of the first key of the hierarchy."""
    ck_ik, rand, impi = bytes(range(32)), bytes(range(16)), b"user1_private@home1.net"
    message = b"\xff\xf1" + b"".join(p + len(p).to_bytes(2, "big") for p in (b"ims-app-master", rand, impi))
    expected = hmac.digest(ck_ik, message, hashlib.sha256)
    assert keys.application_master_key(Secret(ck_ik[:16]), Secret(ck_ik[16:]), rand, Impi(impi.decode())) == Secret(expected)
