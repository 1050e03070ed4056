"""What Kamailio loads (app_python3); everything else is in keyferry.kemi. Written by `keyferry kamailio`."""

import sys

sys.dont_write_bytecode = True
sys.path[:0] = @PATHS@

import KSR  # noqa: E402 - Kamailio's own
from keyferry.kemi.script import Script  # noqa: E402


def mod_init():
    """Return the object whose methods the configuration calls."""
    return Script(KSR, @SETTINGS@)
