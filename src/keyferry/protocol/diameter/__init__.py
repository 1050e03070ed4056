# SPDX-License-Identifier: Apache-2.0
"""Diameter: messages and AVPs, the base protocol, Cx, the peer machine (RFC 6733, RFC 3539, TS 29.229).

The dictionary (names, types and M flags of AVPs) and the codecs of the rarer types are those of the library python-diameter; its
node is not used. Importing this package imports the library, which takes about 0.2 s: import it where Cx goes over the wire only.
"""
