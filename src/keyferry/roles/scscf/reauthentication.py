# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: devices whose next REGISTER is challenged whatever protected it (TS 24.229 §5.4.1.6, Release 17; DESIGN §5 step 4).

In memory: after a restart a device that was asked to authenticate again may refresh once more without a challenge.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from keyferry.protocol.identity import Impi, Reg

MAX_DEVICES = 200_000  # of each kind; the oldest goes
ONCE_IN = 86_400.0  # seconds: a middleman who always strips the release causes one more AKA run a day

Device: TypeAlias = tuple[Impi, Reg]


class Reauthentications:
    """Remember who must, and who was asked already because a capability was lost."""

    def __init__(self, most: int = MAX_DEVICES) -> None:
        self._required: OrderedDict[Device, None] = OrderedDict()
        self._asked: OrderedDict[Device, float] = OrderedDict()  # until when not again
        self._most = most

    def require(self, impi: Impi, reg: Reg) -> None:
        """Let the device's next REGISTER be challenged."""
        self._required[impi, reg] = None
        if len(self._required) > self._most:
            self._required.popitem(last=False)

    def is_required(self, impi: Impi, reg: Reg) -> bool:
        """Tell whether the device must authenticate again."""
        return (impi, reg) in self._required

    def done(self, impi: Impi, reg: Reg) -> None:
        """Note that the device authenticated, or is gone."""
        self._required.pop((impi, reg), None)

    def first(self, impi: Impi, reg: Reg, now: float) -> bool:
        """Tell whether a device that lost its capability has not been asked lately, and note that it is now."""
        if self._asked.get((impi, reg), 0.0) > now:
            return False
        self._asked[impi, reg] = now + ONCE_IN
        self._asked.move_to_end((impi, reg))
        if len(self._asked) > self._most:
            self._asked.popitem(last=False)
        return True
