# SPDX-License-Identifier: Apache-2.0
"""Packet captures: octets of a file in, SIP and Diameter messages out.

pcap.py      files: pcap and pcapng, cut into frames
packets.py   frames: link layers, IP, GTP-U, ESP without encryption, UDP
fragments.py IP fragments put together
tcp.py       TCP streams with loss, reordering and retransmission
sctp.py      SCTP data chunks
diameter.py  Diameter messages and AVPs, keys as lengths only
messages.py  SIP and Diameter found in datagrams and streams
"""
