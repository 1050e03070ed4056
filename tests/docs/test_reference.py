# SPDX-License-Identifier: Apache-2.0
"""What the code has, the documentation has: settings, commands, exceptions, metrics, messages; and every link leads somewhere."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import keyferry
from docs.console import ROOT
from keyferry import config
from keyferry.config import agent
from keyferry.errors import KeyferryError
from keyferry.kemi.store import K_M
from keyferry.protocol.ims.verdicts import ADVICE, Reason
from keyferry.stores.rotation import SEALED_COLUMNS
from keyferry.wiring.metrics import COUNTERS, GAUGES, HISTOGRAMS

DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "keyferry"
PAGES = [*sorted(DOCS.glob("*.md")), *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def _load_make_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools" / "make_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_docs"] = module
    spec.loader.exec_module(module)
    return module


make_docs = _load_make_docs()


# ---- generated pages


def test_the_generated_pages_are_as_the_code_is() -> None:
    """Settings, commands, the messages of a real run, the transaction tables."""
    old = [path.relative_to(ROOT).as_posix() for path, text in make_docs.pages().items() if path.read_text("utf-8") != text]
    assert old == [], "run: .venv/bin/python tools/make_docs.py"


def test_no_key_stands_among_the_messages() -> None:
    """The run has real keys; the page has none of 32 hexadecimal digits after ck, ik, response, rspauth, and no blob."""
    text = (DOCS / "protocol.md").read_text("utf-8")
    assert not re.search(r'\b(ck|ik|response|rspauth)="[0-9a-f]{32}', text)
    assert not re.search(r"&gt;[A-Za-z0-9+/=]{60}", text)
    assert not re.search(r"<kf:key[^>]*>[A-Za-z0-9+/=]{44}", text)
    for number in ("K_AS, 32 octets", "ck, 32 hex digits", "V‖C"):
        assert number in text


def test_every_sealed_column_is_documented_with_what_it_binds() -> None:
    text = (DOCS / "protocol.md").read_text("utf-8")
    for column in (*SEALED_COLUMNS, K_M):
        row = next((line for line in text.splitlines() if f"`{column.table}.{column.column}`" in line), "")
        assert row.split("|")[3].split(" (")[0].strip() == ", ".join(column.bound), column


# ---- settings


def test_every_setting_is_documented() -> None:
    """The table of its section has its name; every one has a description."""
    text = (DOCS / "configuration.md").read_text("utf-8")
    sections: tuple[type[Any], ...] = (*config.SECTIONS, agent.Agent, agent.AgentUser)
    for section in sections:
        for name in section.__struct_fields__:
            assert f"| `{name}` |" in text, f"{section.__name__}.{name}"
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(section.__struct_fields__) for section in sections)
    assert all(len(row.split("|")[4].strip()) > 3 for row in rows), "a setting without a description"


# ---- commands


def test_every_command_has_an_example_and_a_page() -> None:
    """--help shows an example that begins with the command's own name."""
    text = (DOCS / "cli.md").read_text("utf-8")
    found = list(make_docs.commands())
    assert len(found) > 10
    for name, command in found:
        example = (command.help or "").partition("Example: ")[2]
        assert example.startswith(name), f"{name} --help has no example"
        assert f"## `{name}`\n" in text
        for option in command.params:
            assert option.help, f"{name} {option.name} has no help"


def test_the_examples_of_help_name_options_that_exist() -> None:
    """An option that was renamed leaves no example behind."""
    for name, command in make_docs.commands():
        known = {word for option in command.params for word in option.opts} | {"--json", "--state"}
        used = set(re.findall(r"(?<= )--[a-z-]+", (command.help or "").partition("Example: ")[2]))
        assert used <= known, name


# ---- exceptions and metrics


def _modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(keyferry.__path__, "keyferry."):
        if not found.name.endswith("__main__") and "frameworks." not in found.name:  # Django's wants settings
            yield importlib.import_module(found.name)


def test_every_exception_is_documented() -> None:
    """Those of errors.py and those that a module makes for itself, private ones aside."""
    text = (DOCS / "errors.md").read_text("utf-8")
    classes = {kind for module in _modules() for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, KeyferryError)}
    public = {kind for kind in classes if not kind.__name__.startswith("_")}
    assert len(public) > 15
    for kind in public:
        assert f"| `{kind.__name__}` | `{kind.__bases__[0].__name__}` |" in text, kind.__name__
    named = set(re.findall(r"^\| `([A-Z]\w+)` \|", text, re.MULTILINE))
    assert named == {kind.__name__ for kind in public}


def _calls(*names: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield the constant arguments of each call of a function or method of such a name; both arms of a conditional."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in names:
                    yield called, [_constants(argument) for argument in node.args]


def _constants(node: ast.expr) -> list[str]:
    if isinstance(node, ast.IfExp):
        return _constants(node.body) + _constants(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def _table(heading: str) -> set[str]:
    """Return the words in backquotes of the first column of the table below a heading."""
    text = (DOCS / "errors.md").read_text("utf-8")
    part = re.split(r"^#+ ", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return {word for line in part.splitlines() if line.startswith("| `") for word in re.findall(r"`([^`]+)`", line.split("|")[1])}


def test_every_metric_is_documented_with_its_reasons() -> None:
    """A counter's name is the first argument of a call of `count`."""
    text = (DOCS / "errors.md").read_text("utf-8")
    counted: dict[str, set[str]] = {}
    for _, arguments in _calls("count"):
        for name in arguments[0] if arguments else []:
            if re.fullmatch(r"[a-z]{2,}(_[a-z]+)*", name):
                counted.setdefault(name, set()).update(arguments[1] if len(arguments) > 1 else ())
    assert _table("Metrics") == set(counted)
    elsewhere = {"as_pushes_refused", "door", "proxy", "sip_dropped"}
    for name, reasons in counted.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        for reason in reasons if name not in elsewhere else ():
            assert f"`{reason}`" in row, f"{name} {reason}"
    assert counted["sip_dropped"] == _table("Dropped SIP messages")


def test_every_time_and_state_is_documented_with_its_labels() -> None:
    """Names, kinds and labels of wiring/metrics.py."""
    declared = {name: ("histogram", described.labels) for name, described in HISTOGRAMS.items()}
    declared |= {f"{name}_total": ("counter", described.labels) for name, described in COUNTERS.items()}
    declared |= {name: ("gauge", described.labels) for name, described in GAUGES.items()}
    shown: dict[str, tuple[str, tuple[str, ...]]] = {}
    part = (DOCS / "errors.md").read_text("utf-8").partition("### Times and states\n")[2].partition("\n#")[0]
    for line in part.splitlines():
        if line.startswith("| `"):
            names, kind, labels, _ = line.strip("|").split("|", 3)
            for name in re.findall(r"`([^`]+)`", names):
                shown[name] = (kind.strip(), tuple(re.findall(r"`([^`]+)`", labels)))
    assert shown == declared


def test_every_reason_of_a_refusal_is_documented() -> None:
    """PushRefused at the key agent, Refused at the door; two more words of the door are no refusals of a request."""
    pushes = {word for name, arguments in _calls("PushRefused", "_refused") for word in (arguments[0] if arguments else [])}
    assert pushes == _table("Refused pushes")
    door = {word for name, arguments in _calls("Refused") for word in (arguments[0] if arguments else [])}
    assert door | {"granted", "store"} == _table("The door")


def test_every_reason_of_a_failed_registration_is_documented_in_the_words_of_the_code() -> None:
    """Symptom and remedy of docs/errors.md are those that log, operator's view and UE show."""
    text = (DOCS / "errors.md").read_text("utf-8")
    assert _table("When a registration fails") == {reason.value for reason in Reason}
    for reason, advice in ADVICE.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{reason.value}` |"))
        assert row.endswith(f"| {advice.says} | {advice.remedy} |")


# ---- links, paths, tests


def _anchors(page: Path) -> set[str]:
    headings = re.findall(
        r"^#{1,4} (.+)$", re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    """Files and headings; a link leads out of the repository nowhere."""
    for target in LINK.findall(page.read_text("utf-8")):
        assert "://" not in target, target
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in _anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_exist(page: Path) -> None:
    """A clause is said to be tested only where a test is."""
    for name in re.findall(r"`(tests/[\w/]+\.\w+)`", page.read_text("utf-8")):
        assert (ROOT / name).is_file(), name


def test_every_page_is_in_the_table_of_contents() -> None:
    """Sphinx warns too; this needs no Sphinx."""
    contents = (DOCS / "index.md").read_text("utf-8").partition("```{toctree}")[2]
    pages = {path.stem for path in DOCS.glob("*.md") if not path.name.endswith(".head.md")} - {"index"}
    assert pages == set(re.findall(r"^([a-z-]+)$", contents, re.MULTILINE))


def test_no_file_names_a_machine_or_a_registry() -> None:
    """Paths of somebody's machine, package mirrors: whoever reads this has others."""
    folders, hosts = ("wo" + "rk", "ro" + "ot", "ho" + "me", "op" + "t"), ("py" + "pi.org", "python" + "hosted", "py" + "pi-")
    forbidden = re.compile(rf"(?<![\w.:/)\]}}-])/(?:{'|'.join(folders)})/\w|{'|'.join(map(re.escape, hosts))}")
    for path in _tracked():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found = forbidden.search(text)
        assert found is None, path.relative_to(ROOT)


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\n") if listed.returncode == 0 else []
    found = [ROOT / name for name in names if name] or [
        path for folder in ("src", "docs", "tests") for path in (ROOT / folder).rglob("*.*")
    ]
    return [path for path in found if path.is_file() and path.suffix != ".pyc"]
