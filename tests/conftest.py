# SPDX-License-Identifier: Apache-2.0
"""Hypothesis runs with the profile that HYPOTHESIS_PROFILE names; processes that tests start hear Ctrl-C."""

from __future__ import annotations

import signal
import threading

from fuzz.profiles import load

load()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # So it is in the background of a shell script, and every process would inherit it. Our programs rightly leave such a signal alone.
    signal.signal(signal.SIGINT, signal.default_int_handler)
