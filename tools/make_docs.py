# SPDX-License-Identifier: Apache-2.0
"""Write the pages of docs/ that follow from the code: settings, commands, the messages of a real run. `--check` only compares."""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
import tempfile
import textwrap
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import httpx
import msgspec
import typer.main

from keyferry import config
from keyferry.cli.app import application
from keyferry.client.http import open_http
from keyferry.config import agent
from keyferry.ports import SipEvent, SipPeer, UeState
from keyferry.protocol.aka import Usim, algorithm_of
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, parse_impi, parse_impu
from keyferry.protocol.ims.keypush import Push, SealedPush, build_push, open_push, parse_service_info
from keyferry.protocol.ims.third_party import parse_third_party_register
from keyferry.protocol.sip.message import Request, build_message
from keyferry.protocol.sip.transaction import CLIENT, SERVER
from keyferry.roles.ue import Ue, UeProfile, UeSecurity
from keyferry.stores.state_dir import StateDir, open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.sip_node import SipNode
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.system import System

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NOTE = "<!-- Written by tools/make_docs.py from the code; a test compares. Change the code, then run it. -->"
WIDTH = 108  # characters of a line in a message; longer ones are folded
HARD, SOFT = "\x01", "\x02"  # stand for a space that is no break, and for a break that is no space


# ---- settings


def settings_page() -> str:
    """Return docs/configuration.md."""
    parts = [NOTE, (DOCS / "configuration.head.md").read_text("utf-8").rstrip(), "## The file of `keyferry serve`"]
    seen: dict[type[Any], str] = {}
    for field in msgspec.structs.fields(config.Config):
        section = _section_of(field.type)
        name = f"[[{field.name}]]" if get_origin(_bare(field.type)) is list else f"[{field.name}]"
        if section is None:
            parts += [f"### `{name}`", f"A table of names and values: {_meta(field.type)['description']}. Default: empty."]
        elif section in seen:
            parts += [f"### `{name}`", f"{_meta(field.type)['description']} Each has the keys of `{seen[section]}`. Default: none."]
        else:
            parts += [f"### `{name}`", *_table(section)]
            seen[section] = name
    parts.append("## The file of `keyferry agent`")
    for name, kind in (("[agent]", agent.Agent), ("[[users]]", agent.AgentUser)):
        parts += [f"### `{name}`", *_table(kind)]
    hosts = next(field for field in msgspec.structs.fields(agent.AgentConfig) if field.name == "hosts")
    parts += ["### `[ipsec]` of the agent", "charon, with protection `ipsec`. It has the keys of `[ipsec]` above."]
    parts += ["### `[hosts]` of the agent", f"A table of names and values: {_meta(hosts.type)['description']}. Default: empty."]
    parts += ["## The file of `keyferry ue`", "### `[ue]`", *_table(config.Ue)]
    for field in msgspec.structs.fields(config.UeConfig)[1:]:
        parts += [f"### `[{field.name}]` of the UE", f"A table of names and values: {_meta(field.type)['description']}. Default: empty."]
    return "\n\n".join(parts) + "\n"


def _table(section: type[Any]) -> list[str]:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for field in msgspec.structs.fields(section):
        meta = _meta(field.type)
        meaning = meta.get("description", "").replace("→", "to")
        rows.append(f"| `{field.name}` | {_kind(field.type, meta)} | {_default(field)} | {meaning} |")
    return [" ".join((section.__doc__ or "").split()), "\n".join(rows)]


def _section_of(kind: Any) -> type[Any] | None:
    bare = _bare(kind)
    inner = get_args(bare)[0] if get_origin(bare) is list else bare
    return inner if isinstance(inner, type) and issubclass(inner, msgspec.Struct) else None


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _meta(kind: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
        for name in ("description", "ge", "gt", "le", "min_length", "max_length", "pattern"):
            if getattr(one, name) is not None:
                found[name] = getattr(one, name)
    return found


def _kind(kind: Any, meta: dict[str, Any]) -> str:
    bare = _bare(kind)
    options = [one for one in get_args(bare) if one is not type(None)]
    if get_origin(bare) is Literal:
        return " or ".join(f"`{value}`" for value in options)
    if get_origin(bare) is list:
        bounds = [f"at {word} {meta[name]}" for name, word in (("min_length", "least"), ("max_length", "most")) if name in meta]
        return ", ".join([f"list of {_kind(options[0], {})}", *bounds])
    if get_origin(bare) is not None or isinstance(bare, typing.types.UnionType):  # type: ignore[attr-defined]
        return _kind(options[0], meta)
    names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Secret: "hexadecimal"}
    limits = {"ge": "at least {}", "gt": "over {}", "le": "at most {}"}
    return ", ".join([names[bare], *(text.format(f"{meta[name]:g}") for name, text in limits.items() if name in meta)])


def _default(field: Any) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
        return f"`{value}`".replace("'", '"')
    if field.default is msgspec.NODEFAULT:
        return "required"
    if field.default is None:
        return "none"
    value = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return f'`"{value}"`' if isinstance(value, str) and not isinstance(field.default, bool) else f"`{value}`"


# ---- commands


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command of the command line with its full name."""

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield name, command
            return
        for word, inner in command.commands.items():
            yield from below(f"{name} {word}", inner)

    yield from below("keyferry", typer.main.get_command(application()))


def commands_page() -> str:
    """Return docs/cli.md."""
    parts = [NOTE, (DOCS / "cli.head.md").read_text("utf-8").rstrip()]
    for name, command in commands():
        text, _, example = (command.help or "").partition("Example: ")
        parts += [f"## `{name}`", text.strip()]
        if example:
            parts.append(f"```console\n$ {' '.join(example.split())}\n```")
        rows = [_parameter(one) for one in command.params if one.name not in {"state", "as_json"}]
        if rows:
            parts.append("\n".join(["| argument or option | meaning | default |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _parameter(one: Any) -> str:
    name = one.metavar if one.param_type_name == "argument" and one.metavar else ", ".join(one.opts)
    default = "required" if one.required else f"`{one.default}`" if one.default not in (None, False) else ""
    return f"| `{name}` | {one.help} | {default} |"


# ---- messages: a real run of the example network, every function on an address of its own

HOSTS = {
    "127.0.2.1": "UE", "127.0.2.2": "P-CSCF", "127.0.2.3": "I-CSCF", "127.0.2.4": "S-CSCF", "127.0.2.5": "AS xcap", "127.0.2.6": "AS notes",
}  # fmt: skip
MOVED = {"127.0.0.1:5060": 2, "127.0.0.1:14500": 2, "127.0.0.1:5062": 3, "127.0.0.1:6060": 4, "127.0.0.1:5090": 5, "127.0.0.1:8443": 5,
         "127.0.0.1:5091": 6, "127.0.0.1:8444": 6, "127.0.0.1:8080": 4}  # fmt: skip
SHOWN_AT = 1_767_225_600  # 2026-01-01T00:00:00Z: the time that the pages show for the AKA run
DOCUMENT = "/simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml"
SECTIONS = (
    "The first REGISTER (SM1) and the challenge",
    "The answer (SM7), the pushes, and the 200 OK",
    "De-registration, and the end of the keys",
)


class Seeded:
    """A random source that yields the same octets in every run."""

    def __init__(self, seed: str) -> None:
        self._seed, self._count = seed, 0

    def octets(self, count: int) -> bytes:
        """Return `count` octets."""
        self._count += 1
        return hashlib.shake_256(f"{self._seed} {self._count}".encode()).digest(count)


class Step(NamedTuple):
    """One message as it was sent."""

    source: str
    target: str
    event: SipEvent


class Run(NamedTuple):
    """What was seen."""

    steps: list[Step]
    http: list[tuple[str, str]]  # title, text
    keys: dict[str, Secret]  # of the seal, by kid


async def record() -> Run:
    """Register, put a document, de-register; every function is the one that `keyferry serve` runs."""
    steps: list[Step] = []

    def observe(event: SipEvent) -> None:
        if event.outgoing and not event.retransmission:
            steps.append(Step(event.node.partition(".")[0], HOSTS[event.peer.host], event))

    async with _network(observe) as (system, state, ue):
        registered = await ue.register()
        http = await _http(system, registered)
        await ue.deregister(registered)
        keys = state.isc_keys("scscf1.home1.net", AsId("xcap.home1.net"))
    return Run(steps, http, keys)


@asynccontextmanager
async def _network(observe: Callable[[SipEvent], None]) -> AsyncIterator[tuple[System, StateDir, Ue]]:
    clock, log = SystemClock(), StructLog("none")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keyferry-docs-")))
        text = (ROOT / "examples" / "lab.toml").read_text("utf-8")
        text = re.sub(r"(?m)^listen_psk1[23] = .*\n", "", text)  # nobody uses them here, and an older Python has none
        for old, number in MOVED.items():
            text = text.replace(f'"{old}"', f'"127.0.2.{number}:{old.partition(":")[2]}"')
        text = text.replace("[scscf]\n", "[scscf]\nas_probe = 0\n", 1)  # its questions come at their own times
        (folder / "lab.toml").write_text(text, "utf-8")
        settings = config.load_config(folder / "lab.toml")
        state = stack.enter_context(open_state(folder / "state", random=SystemRandom(), exclusive=True))
        system = System(settings, state, clock, Seeded("network"), log, Metrics(), observer=observe)
        stack.push_async_callback(system.stop)
        await system.start()
        random = Seeded("ue")
        node = SipNode(name="UE", clock=clock, random=random, log=log, observer=observe)
        stack.push_async_callback(node.aclose)
        await node.listen("127.0.2.1", 5060)
        sas = await node.protect("127.0.2.1", 14500, pcscf=SipPeer("UDP", "127.0.2.2", 14500))
        card = settings.subscribers[0]
        profile = UeProfile(parse_impi(card.impi), parse_impu(card.impus[0]), "home1.net")
        usim = Usim(algorithm_of("milenage", card.k, card.opc or Secret(b"")))
        hop = SipPeer("UDP", "127.0.2.2", 5060)
        yield system, state, Ue(
            profile, usim, sip=node, pcscf=hop, contact_uri=f"sip:user1_public1@127.0.2.1:{sas.ports[1]}",
            instance="urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6", clock=clock, random=random, log=log,
            security=UeSecurity(sas, profile.impi),
        )  # fmt: skip


async def _http(system: System, state: UeState) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []

    async def sent(request: httpx.Request) -> None:
        start = f"{request.method} {request.url.raw_path.decode()} HTTP/1.1"
        seen.append((f"UE to AS: {request.method}", _http_text(start, request.headers.raw, request.content)))

    async def got(response: httpx.Response) -> None:
        await response.aread()
        start = f"HTTP/1.1 {response.status_code} {response.reason_phrase}"
        seen.append((f"AS to UE: {response.status_code}", _http_text(start, response.headers.raw, response.content)))

    url = "https://xcap.home1.net:8443"
    hosts = {"xcap.home1.net": "127.0.2.5"}
    async with open_http(state, url, ca=system.pki.ca_file, hosts=hosts, random=Seeded("client"), waits=()) as client:
        client.event_hooks = {"request": [sent], "response": [got]}
        body = (ROOT / "examples" / "simservs.xml").read_bytes()
        await client.put(url + DOCUMENT, content=body, headers={"Content-Type": "application/vnd.etsi.simservs+xml"})
        await client.get(url + DOCUMENT)
    return seen


def _http_text(start: str, headers: list[tuple[bytes, bytes]], body: bytes) -> str:
    lines = [start, *(f"{name.decode()}: {value.decode()}" for name, value in headers)]
    text = "\n".join(lines)
    text = re.sub(r'([^c])nonce="[^"]{40}"', r'\1nonce="«nonce of the door»"', text)
    text = re.sub(r'(cb1\.[^."]+\.)[^"]+"', r'\1«SHA-256 of the certificate»"', text)
    text = re.sub(r"(?mi)^date: .*", "date: «now»", text)
    text = re.sub(r"(?mi)^user-agent: .*", "User-Agent: «httpx»", text)
    return _masked(text) + (f"\n\n«{len(body)} octets: examples/simservs.xml»" if b"<simservs" in body else _plain(body))


def _plain(body: bytes) -> str:
    return f"\n\n{body.decode().rstrip()}" if body else ""


def _opened(request: Request, keys: dict[str, Secret], number: int) -> str:
    """Return the plaintext of a key block, its times moved to those of the pages and its key taken out."""
    block = parse_service_info(parse_third_party_register(request).service_info or "")
    if not isinstance(block, SealedPush):
        raise TypeError("a block that is not sealed")
    push = open_push(block, keys[block.kid])
    moved = tuple(key._replace(not_before=SHOWN_AT, not_after=SHOWN_AT + key.not_after - key.not_before) for key in push.keys)
    text = build_push(Push(SHOWN_AT * 1000 + number, push.impi, push.as_id, push.reg, moved, push.impus, push.service_info))
    text = re.sub(r"(<kf:key[^>]*>)[^<]*", r"\1«K_AS, 32 octets, base64»", text)
    return text.replace("><kf:", ">\n  <kf:").replace("></kf:push>", ">\n</kf:push>")


def _masked(text: str) -> str:
    text = re.sub(r'\b([ci]k)="[0-9a-f]{32}"', r'\1="«\1, 32 hex digits»"', text)
    text = re.sub(r'\b(response|rspauth)="[0-9a-f]{32,64}"', r'\1="«\1»"', text)
    text = re.sub(r"(Keyferry-Store: .*;id=)[0-9a-f]{24}", r"\1«24 characters»", text)
    return re.sub(r"(&gt;)[A-Za-z0-9+/=]{60,}(&lt;)", r"\1«V‖C, base64»\2", text)


def _folded(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        # a space inside «…» is no place to break at, a semicolon of a Contact is one
        kept = re.sub(r"«[^»]*»", lambda found: found[0].replace(" ", HARD), line)
        kept = re.sub(r"(?<=[>\"]);", "; " + SOFT, kept) if kept.startswith("Contact:") else kept
        lines += textwrap.wrap(kept, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False) or [""]
    return "\n".join(lines).replace(f"; {SOFT}", ";").replace(SOFT, "").replace(HARD, " ")


def _fence(text: str, language: str = "text") -> str:
    return f"```{language}\n{_folded(text).rstrip()}\n```"


def messages() -> str:
    """Return the messages of one run as Markdown."""
    run = asyncio.run(record())
    parts: list[str] = []
    section = -1
    for step in run.steps:
        message = step.event.message
        if step.source == "UE":
            section += 1
            if section == 2:
                parts += _http_section(run.http)
            parts.append(f"### {SECTIONS[section]}")
        inside = section > 1 and "AS" not in step.source + step.target and "UE" not in (step.source, step.target)
        if inside or "AS notes" in (step.source, step.target):
            continue
        what = message.method if isinstance(message, Request) else f"{message.status} {message.reason}"
        wire = step.event.wire
        carried = f"in an ESP packet of {wire}" if wire else f"over {step.event.peer.transport}"
        parts.append(f"**{step.source} to {step.target}: {what}**, {step.event.octets} octets {carried}")
        parts.append(_fence(_masked(build_message(message).decode())))
        if step.target == "AS xcap":
            parts += ["Inside the seal (line breaks added):", _fence(_opened(typing.cast("Request", message), run.keys, section), "xml")]
    return "\n\n".join(parts)


def _http_section(http: list[tuple[str, str]]) -> list[str]:
    return ["### HTTPS with the ferried key", *(part for title, text in http for part in (f"**{title}**", _fence(text)))]


# ---- state machines


def machines() -> str:
    """Return the two transaction machines as tables."""
    parts = []
    for title, table in (("Client (RFC 3261 figure 6)", CLIENT), ("Server (RFC 3261 figure 8)", SERVER)):
        rows = [
            f"| {state.name.title()} | {what.name.lower().replace('_', ' ')} | {after.name.title()} |"
            for (state, what), after in table.items()
        ]
        parts.append("\n".join([f"**{title}**", "", "| state | input | next |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


# ---- writing


def pages() -> dict[Path, str]:
    """Return every page that this program writes."""
    protocol = DOCS / "protocol.md"
    text = _between(protocol.read_text("utf-8"), "messages", messages())
    return {
        DOCS / "configuration.md": settings_page(),
        DOCS / "cli.md": commands_page(),
        protocol: _between(text, "machines", machines()),
    }


def _between(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def main(arguments: list[str]) -> int:
    """Write, or with --check say which pages are not as the code is."""
    wrong = []
    for path, text in pages().items():
        if path.is_file() and path.read_text("utf-8") == text:
            continue
        wrong.append(path.relative_to(ROOT).as_posix())
        if "--check" not in arguments:
            path.write_text(text, "utf-8")
    sys.stdout.write("".join(f"{name}: {'differs' if '--check' in arguments else 'written'}\n" for name in wrong))
    return 1 if wrong and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
