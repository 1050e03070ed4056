# SPDX-License-Identifier: Apache-2.0
"""Open the seal of a push without keyferry: `open_seal.py KEY_FILE < kf:sealed`; prints the first 16 hex digits of SHA-256 of each key."""

import base64
import hashlib
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESSIV

keys = dict(line.split() for line in Path(sys.argv[1]).read_text().splitlines())
sealed = ET.fromstring(sys.stdin.read())
bound = [b"keyferry-isc-1", *(sealed.attrib[name].encode() for name in ("from", "as", "kid"))]
push = AESSIV(base64.b64decode(keys[sealed.attrib["kid"]])).decrypt(base64.b64decode(sealed.text or ""), bound)
for key in ET.fromstring(push).iter("{urn:keyferry:isc:1}key"):
    print(hashlib.sha256(base64.b64decode(key.text or "")).hexdigest()[:16])
