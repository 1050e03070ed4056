# SPDX-License-Identifier: Apache-2.0
"""The authentication proxy (TS 33.222 §6, TS 24.109 §7, Release 17): in front of application servers, it knows who asks.

fields      which header fields go on, which end here, which are ours
forward     one request behind the door: to the server of that name, and its answer back, streaming
front       many host names on one listener: each has its door and its server
tunnel      what follows a 101: octets both ways
"""
