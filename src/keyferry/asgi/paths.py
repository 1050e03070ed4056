# SPDX-License-Identifier: Apache-2.0
"""Which paths need a login: rules by prefix, the most specific one decides, and doubt means a login.

A rule "/a" covers /a and all below it. The application behind, or a server behind that, may read a path in another way than
the one it came in: it may decode again, drop dot segments or parameters, merge slashes, ignore case. So a path is open only
if it is open in the plain reading and in the one that does all this.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from keyferry.asgi.routing import Router
from keyferry.errors import ConfigError

MAX_RULES = 256
"""Each is looked at for each request."""
MAX_OPEN_PATH = 2_048
"""Characters; a longer path needs a login, and is not taken apart."""

# What two readers may understand differently: dot segments, empty segments, a backslash, controls, an octet that was no
# UTF-8, an escape that is left after decoding. No browser sends one of them to a page that is there.
_DOUBTFUL = re.compile(r"//|\\|[\x00-\x1f\x7f\ufffd\ud800-\udfff]|%[0-9A-Fa-f]{2}|/\.{1,2}(?:[/;]|\Z)")


class PathRules:
    """Decide whether a path needs a login."""

    def __init__(self, open: Iterable[str] = (), required: Iterable[str] = ("/",), router: Router | None = None) -> None:
        """Take the rules, and who takes paths apart behind; what no rule covers needs a login. Raises ConfigError."""
        self._router = router or Router()
        rules = [(_check("open", path), False) for path in _several("open", open)]
        rules += [(_check("required", path), True) for path in _several("required", required)]
        if len(rules) > MAX_RULES:
            raise ConfigError("SimLogin open, required", f"more than {MAX_RULES} rules", "Cover many paths with one prefix")
        # Longest first, and a required one before an open one that folds to the same.
        self._plain = sorted(rules, key=lambda rule: (-len(rule[0]), not rule[1]))
        self._folded = sorted({(_fold(_characters(path)), needs) for path, needs in rules}, key=lambda rule: (-len(rule[0]), not rule[1]))
        seen: dict[str, bool] = {}
        for path, needs in rules:
            if seen.setdefault(path, needs) != needs:
                raise ConfigError("SimLogin open, required", f"{path!r} is in both", "Name it in one")
        self.all_required = all(needs for _path, needs in rules)

    def needs_login(self, scope: Any) -> bool:
        """Tell whether the path of an ASGI scope needs a login."""
        if self.all_required:
            return True
        path, raw, root = scope["path"], scope.get("raw_path"), scope.get("root_path") or ""
        if self._any_needs(path, root):
            return True
        if raw is None:
            return False
        # Frameworks look at `path`, some servers behind them at the target as sent: both must be open.
        decoded = unquote(raw.decode("ascii", "replace"), errors="replace")
        return decoded != path and self._any_needs(decoded, root)

    def _any_needs(self, path: str, root: str) -> bool:
        return any(map(self._needs, self._router.readings(path, root)))

    def _needs(self, path: str) -> bool:
        if len(path) > MAX_OPEN_PATH or not path.startswith("/"):
            return True
        text = _characters(path)
        if _DOUBTFUL.search(path) or _DOUBTFUL.search(text):
            return True
        return _decide(path, self._plain) or _decide(_fold(text), self._folded)


def _decide(path: str, rules: list[tuple[str, bool]]) -> bool:
    for prefix, needs in rules:
        if path == prefix or prefix == "/" or path.startswith(prefix + "/"):
            return needs or _holds_required(path, prefix, rules)
    return True


def _holds_required(path: str, opened: str, rules: list[tuple[str, bool]]) -> bool:
    """Tell whether a required path stands further back in an open one: an application may take off a root that no server told us of."""
    ends = path + "/"
    return any(needs and prefix != "/" and ends.find(prefix + "/", max(1, len(opened) - len(prefix) + 1)) > 0 for prefix, needs in rules)


def _characters(path: str) -> str:
    """Return a path without case and compatibility characters: some of them are a slash, a dot or a percent sign."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())


def _fold(path: str) -> str:
    """Return a path as the most careless reader takes it: no parameters, no trailing dots and spaces."""
    segments = [segment.partition(";")[0].rstrip(". ") for segment in path.split("/")]
    return re.sub(r"/{2,}", "/", "/".join(segments)).rstrip("/") or "/"


def _several(name: str, paths: Iterable[str]) -> list[str]:
    if isinstance(paths, str):
        raise ConfigError(f"SimLogin {name}", "is one text, not several paths", f'Write {name}=("{paths}",)')
    return list(paths)


def _check(name: str, path: object) -> str:
    """Return a rule without a final slash."""
    where = f"SimLogin {name}"
    if not isinstance(path, str) or not path.startswith("/"):
        raise ConfigError(where, f"{path!r} is no path from the root", "Begin it with a slash")
    if path != "/" and (_DOUBTFUL.search(path) or re.search(r"[?#;*]", path)):
        raise ConfigError(where, f"{path!r} can never be asked for", "Write it decoded, without //, dots, parameters, query and wildcard")
    return path.rstrip("/") or "/"
