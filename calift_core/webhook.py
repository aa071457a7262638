"""Tell a web address that something has ended: one signed POST.

The signature is that of Standard Webhooks (standardwebhooks.com): headers `webhook-id`,
`webhook-timestamp` and `webhook-signature`, which is `v1,` and the base64 of HMAC-SHA256 over
`id.timestamp.body`. Receivers check it with any of that standard's libraries.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import ipaddress
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from calift_core.errors import CaliftError, SpecError

Form = Literal["json", "slack"]
#: Seconds for each step of a call: to connect, to send, to hear.
_PATIENCE_S = 10.0
_PREFIX = "whsec_"


class WebhookError(CaliftError):
    """A webhook was not delivered; it may be later."""

    code = "WEBHOOK"


@dataclass(frozen=True)
class Webhook:
    """Where to, and how.

    Attributes:
        url: http or https.
        secret: of the signature: any text, or `whsec_` and base64; empty: unsigned.
        form: `json`: the event itself; `slack`: the text that Slack and Mattermost show.
        private: whether the address may be in a private network, or this machine.
    """

    url: str
    secret: str = ""
    form: Form = "json"
    private: bool = False

    def __post_init__(self) -> None:
        try:
            place = urlsplit(self.url)
            host = (place.hostname or "").encode("idna").decode()
            usable = place.port is None or place.port > 0
        except ValueError as error:  # a port that is none, a bracket, a label of 64 letters
            raise SpecError(f"a webhook must be a web address: {error}") from error
        if place.scheme not in ("http", "https") or not host or place.username or not usable:
            raise SpecError(
                "a webhook must be http://HOST/… or https://HOST/… without a password, got "
                f"{place.scheme or 'no scheme'} and {host or 'no host'}"
            )
        _key(self.secret)


@dataclass(frozen=True)
class Event:
    """Something that has ended.

    Attributes:
        id: the same at every attempt to deliver it.
        type: such as `run.succeeded`, `sweep.failed`, `watch.alarm`.
        at: when, in seconds since the epoch.
        text: a sentence for people.
        data: for machines.
    """

    id: str
    type: str
    at: float
    text: str
    data: Mapping[str, Any]


def body_of(event: Event, form: Form) -> bytes:
    """What is sent."""
    if form == "slack":
        text = event.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return json.dumps({"text": text}).encode()
    at = datetime.fromtimestamp(event.at, UTC).isoformat(timespec="seconds")
    content = {"type": event.type, "timestamp": at, "text": event.text, "data": dict(event.data)}
    return json.dumps(content).encode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    found = hmac.new(_key(secret), signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(found).decode()}"


def deliver(webhook: Webhook, event: Event, *, now: float) -> None:
    """Send an event once.

    Raises:
        WebhookError: the address is refused or does not answer with 2xx; redirects are not
            followed.
    """
    place = urlsplit(webhook.url)
    body = body_of(event, webhook.form)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "calift",
        "webhook-id": event.id,
        "webhook-timestamp": str(int(now)),
    }
    if webhook.secret:
        headers["webhook-signature"] = signature(webhook.secret, event.id, int(now), body)
    kind = _Https if place.scheme == "https" else _Http
    connection = kind(place.hostname or "", place.port, timeout=_PATIENCE_S)
    connection.private = webhook.private
    target = (place.path or "/") + (f"?{place.query}" if place.query else "")
    try:
        connection.request("POST", target, body, headers)
        with connection.getresponse() as answer:
            status = answer.status
    except (OSError, http.client.HTTPException) as error:
        raise WebhookError(f"the webhook at {place.hostname} cannot be reached: {error}") from error
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise WebhookError(f"the webhook at {place.hostname} answered with {status}")


class _Http(http.client.HTTPConnection):
    """A connection that looks at the address it connects to: a name cannot lead elsewhere."""

    private = False

    def connect(self) -> None:
        self.sock = _connected(self.host, self.port, self.private)


class _Https(http.client.HTTPSConnection):
    private = False

    def connect(self) -> None:
        plain = _connected(self.host, self.port, self.private)
        self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


def _connected(host: str, port: int, private: bool) -> socket.socket:
    """A connection to the first of the host's allowed addresses that takes one."""
    failed: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
        allowed = ip.is_global or (private and not ip.is_link_local and not ip.is_multicast)
        if not allowed:
            failed = failed or OSError(f"{ip} is no public address")
            continue
        made = socket.socket(family, kind, protocol)
        made.settimeout(_PATIENCE_S)
        try:
            made.connect(address)
        except OSError as error:
            made.close()
            failed = error
            continue
        return made
    raise failed or OSError(f"{host} has no address")


def _key(secret: str) -> bytes:
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise SpecError("a webhook's secret that begins with whsec_ must go on in base64") from None
