# SPDX-License-Identifier: Apache-2.0
"""Settings of a Kamailio that is the S-CSCF in place of ours: what `keyferry kamailio` writes its configuration from."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from keyferry.config.reading import Section


class Kamailio(Section, frozen=True, kw_only=True):
    """A stock Kamailio as S-CSCF, under the name and at the address of `[scscf]`; see docs/kamailio.md."""

    user: Annotated[str, Meta(description="user that Kamailio runs as: it alone may ask for rspauth and read the sealed state")] = (
        "kamailio"
    )
    hss: Annotated[str | None, Meta(description="host name of the HSS, which must resolve on Kamailio's machine; default: `hss.name`")] = (
        None
    )
    hss_port: Annotated[int, Meta(ge=0, le=65535, description="its port; 0: that of `hss.listen_diameter`, else 3868")] = 0
    rspauth_socket: Annotated[
        str | None,
        Meta(description="UNIX socket where our HSS gives rspauth for accepted answers; none: set `hss.marker_flags = 3`"),
    ] = None
    rspauth_group: Annotated[
        str | None,
        Meta(description="name or number of the group that may open that socket; default: the main group of `kamailio.user`"),
    ] = None
    children: Annotated[int, Meta(ge=1, le=64, description="processes for UDP, and as many for TCP")] = 4
    trusted_peers: Annotated[
        list[str],
        Meta(
            description="IP addresses and prefixes of the P- and I-CSCFs that may send requests, with those of "
            "`scscf.trusted_peers`: no others"
        ),
    ] = msgspec.field(default_factory=list)
