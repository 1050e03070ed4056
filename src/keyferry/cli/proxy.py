# SPDX-License-Identifier: Apache-2.0
"""`keyferry proxy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json
from keyferry.client.upstream import Timeouts
from keyferry.errors import ConfigError
from keyferry.protocol.identity import parse_as_id
from keyferry.wiring.observability import LogFormat
from keyferry.wiring.proxy import ProxySettings, parse_target, serve_proxy
from keyferry.wiring.proxy_secrets import parse_secret_files

# Users, and how the proxy knows them
ListenOption = Annotated[str, typer.Option(metavar="HOST:PORT", help="Where users connect, over TLS.")]
AgentOption = Annotated[
    str, typer.Option(envvar="KEYFERRY_AGENT", metavar="unix:PATH", help="Key agent; default: the key stores in the state directory.")
]
CertificateOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="PEM, with its chain; default: made by the CA of the state directory.")
]
KeyOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Private key of --certificate; default: in the same file.")]
OriginOption = Annotated[list[str] | None, typer.Option(metavar="ORIGIN", help="Further site whose pages may act for users. Repeatable.")]
TrustedProxyOption = Annotated[
    list[str] | None,
    typer.Option(metavar="ADDRESS|PREFIX", help="Load balancer in front, whose X-Forwarded-For says who the client is. Repeatable."),
]

# The servers behind, and what they are told
UpstreamOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=URL", help="Host name that users open, and the server behind: http://, https://, unix:/PATH. Repeatable."),
]
HostOption = Annotated[str, typer.Option("--host", metavar="original|upstream", help="Host field for the server behind.")]
UserIdOption = Annotated[str, typer.Option(metavar="NAME", help="Tell the server an opaque, stable id of the user in this field, too.")]
SecretsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FILE", help="Secret that the server behind NAME sees in X-Keyferry-Secret. Repeatable; of one server, FILE will do."
    ),
]
UpstreamCaOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Trust this CA alone for https:// behind.")]
UpstreamCertificateOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Show this certificate to servers behind.")]
UpstreamKeyOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key.")]
PlainOption = Annotated[
    bool, typer.Option("--plain-upstream", help="Allow http:// to other machines, where IPsec or the like protects it.")
]
ConnectOption = Annotated[float, typer.Option(min=0.1, help="Seconds for a connection to a server behind.")]
AnswerOption = Annotated[float, typer.Option(min=0.1, help="Seconds from the end of a request to the head of its answer.")]
IdleOption = Annotated[float, typer.Option(min=0.1, help="Seconds in which nothing more of an answer comes.")]
ConnectionsOption = Annotated[int, typer.Option(min=1, help="To each server behind, WebSockets included; above, 503.")]

# nginx in the proxy's place
AuthRequestOption = Annotated[
    str, typer.Option(metavar="unix:PATH|HOST:PORT", help="Answer nginx's auth_request here; users connect to nginx.")
]
NamesOption = Annotated[list[str] | None, typer.Option("--name", metavar="NAME", help="Host name that nginx serves. Repeatable.")]
EndpointSecretOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Secret that nginx must show in X-Keyferry-Secret; needed on HOST:PORT.")
]

# The operator
AdminOption = Annotated[str, typer.Option(metavar="HOST:PORT", help="Serve /health, /ready and /metrics here; default: nowhere.")]
AuditOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Append one JSON line a login.")]
LogOption = Annotated[str, typer.Option("--log", help="text, json or none; goes to standard error.")]


def proxy(
    upstream: UpstreamOption = None,
    listen: ListenOption = "127.0.0.1:8443",
    agent: AgentOption = "",
    certificate: CertificateOption = None,
    key: KeyOption = None,
    host_field: HostOption = "original",
    user_id_header: UserIdOption = "",
    secret_file: SecretsOption = None,
    upstream_ca: UpstreamCaOption = None,
    upstream_certificate: UpstreamCertificateOption = None,
    upstream_key: UpstreamKeyOption = None,
    plain_upstream: PlainOption = False,
    connect_timeout: ConnectOption = 5.0,
    answer_timeout: AnswerOption = 60.0,
    idle_timeout: IdleOption = 60.0,
    max_connections: ConnectionsOption = 512,
    auth_request: AuthRequestOption = "",
    name: NamesOption = None,
    auth_request_secret_file: EndpointSecretOption = None,
    trusted_origin: OriginOption = None,
    trusted_proxy: TrustedProxyOption = None,
    admin: AdminOption = "",
    audit: AuditOption = None,
    log: LogOption = "text",
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Put SIM login in front of web servers that know nothing of it (TS 33.222), until SIGTERM or Ctrl-C.

    The server behind finds who asks in X-3GPP-Asserted-Identity. It must take connections from this proxy alone: let it listen on a
    loopback address or a UNIX socket, or demand --upstream-certificate or the secret of its --secret-file.

    When it listens, one JSON line is printed: {"ready": true, "listen": [...], "ca": PATH}.

    Example: keyferry proxy --upstream notes.home1.net=http://127.0.0.1:8000
    """
    del as_json  # the ready line is JSON either way: it is there for scripts
    if log not in {"text", "json", "none"}:
        raise ConfigError("--log", f"{log!r} is not text, json or none")
    if host_field not in {"original", "upstream"}:
        raise ConfigError("--host", f"{host_field!r} is neither original nor upstream")
    targets = [parse_target(text, plain=plain_upstream) for text in upstream or ()]
    secret_files = parse_secret_files(secret_file or (), [target.as_id for target in targets], endpoint=bool(auth_request))
    settings = ProxySettings(
        targets=targets, listen=listen, agent=agent, certificate=certificate, key=key, host_of_upstream=host_field == "upstream",
        user_id_header=user_id_header, secret_files=secret_files, upstream_ca=upstream_ca, upstream_certificate=upstream_certificate,
        upstream_key=upstream_key, timeouts=Timeouts(connect_timeout, answer_timeout, idle_timeout), max_connections=max_connections,
        auth_request=auth_request, auth_request_secret_file=auth_request_secret_file, names=[parse_as_id(text) for text in name or ()],
        trusted_origins=trusted_origin or (), trusted_proxies=trusted_proxy or (), admin=admin, audit=audit,
    )  # fmt: skip
    _check(settings)
    serve_proxy(settings, state, show_json, log_format=cast("LogFormat", log))
    console.print("stopped")


def _check(settings: ProxySettings) -> None:
    names = [target.as_id for target in settings.targets]
    if len(set(names)) != len(names):
        raise ConfigError("--upstream", "names a host twice", "One host name is one server")
    if not names and not settings.auth_request:
        raise ConfigError("--upstream", "is missing", "Write for example --upstream notes.home1.net=http://127.0.0.1:8000")
    if bool(settings.names) != bool(settings.auth_request):
        raise ConfigError("--auth-request", "goes with --name", "Say with --name which host names nginx serves")
    if settings.auth_request_secret_file and not settings.auth_request:
        raise ConfigError("--auth-request-secret-file", "goes with --auth-request", "Servers behind have theirs by --secret-file")
    if settings.key and not settings.certificate:
        raise ConfigError("--key", "goes with --certificate", "Give both files")
