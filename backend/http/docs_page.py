"""The API's description as one page without scripts: it needs no network and runs nothing."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
pre,code{font:14px/1.4 ui-monospace,monospace}
pre{overflow:auto;padding:.75rem;border:1px solid #8884;border-radius:.4rem}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;border-top:1px solid #8884}
summary{cursor:pointer;padding:.35rem 0}
summary code{font-weight:600}
details details{margin-left:1rem}
"""

_POLICY = (
    "default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def docs_page(document: Mapping[str, Any], address: str) -> tuple[str, str]:
    """Draw an OpenAPI document.

    Args:
        address: where the service was asked, for the examples.

    Returns:
        The page, and the content policy to send with it.
    """
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    body = "".join(_body(document, address))
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(document['info']['title'])} API</title>"
        f"<style>{_STYLE}</style>{body}</html>"
    )
    return page, _POLICY.format(digest=digest)


def _body(document: Mapping[str, Any], address: str) -> Iterator[str]:
    info = document["info"]
    yield f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
    yield f"<p>{_prose(info['description'])}</p>"
    yield '<p>The same for machines: <a href="/api/v1/openapi.json">/api/v1/openapi.json</a>.</p>'
    tags: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tags.setdefault(operation.get("tags", ["other"])[0], []).append(
                (method.upper(), path, operation)
            )
    for tag, entries in tags.items():
        yield f"<h2>{escape(tag)}</h2>"
        for method, path, operation in entries:
            yield from _operation(method, path, operation, address)
    yield "<h2>schemas</h2>"
    for name, schema in document["components"]["schemas"].items():
        yield (
            f"<details><summary><code>{escape(name)}</code></summary>"
            # Inside: a link to what is folded away unfolds it.
            f'<pre id="{escape(name)}">{_as_json(schema)}</pre></details>'
        )


def _operation(method: str, path: str, operation: Mapping[str, Any], address: str) -> Iterator[str]:
    text = operation.get("description") or operation.get("summary", "")
    first, _, rest = text.partition("\n\n")
    yield (
        f"<details><summary><code>{method} {escape(path)}</code> {_prose(first)}</summary>"
        f"<p>{_prose(rest)}</p>"
    )
    parameters = operation.get("parameters", [])
    if parameters:
        yield "<table><tr><th>parameter<th>in<th>type<th>"
        for parameter in parameters:
            schema = parameter.get("schema", {})
            needed = " (required)" if parameter.get("required") else ""
            yield (
                f"<tr><td><code>{escape(parameter['name'])}</code>{needed}"
                f"<td>{escape(parameter['in'])}<td>{escape(_type(schema))}"
                f"<td>{_prose(parameter.get('description', ''))}"
            )
        yield "</table>"
    content = operation.get("requestBody", {}).get("content", {})
    for media, described in content.items():
        yield f"<p>Body: {escape(media)}, {_links(described.get('schema', {}))}</p>"
        for example in described.get("examples", {}).values():
            yield f"<p>{escape(example.get('summary', ''))}</p>"
            yield f"<pre>{_as_json(example['value'])}</pre>"
    yield f"<pre>{escape(_curl(method, path, operation, content, address))}</pre>"
    answers = [
        f"{status} {_links(_first_schema(answer))}"
        for status, answer in operation["responses"].items()
        if status < "400"
    ]
    refusals = ", ".join(status for status in operation["responses"] if status >= "400")
    yield f"<p>Answers: {'; '.join(answers)}. Problems: {escape(refusals)}.</p></details>"


def _first_schema(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    for described in answer.get("content", {}).values():
        schema: Mapping[str, Any] = described.get("schema", {})
        return schema
    return {}


def _curl(
    method: str, path: str, operation: Mapping[str, Any], content: Mapping[str, Any], address: str
) -> str:
    parts = ["curl"] + (["-X", method] if method != "GET" else [])
    if operation.get("security") != []:
        parts.append('-H "Authorization: Bearer $TOKEN"')
    if content:
        parts.append(f"-H 'Content-Type: {next(iter(content))}' --data-binary @FILE")
    return " ".join([*parts, f"'{address}{path}'"])


def _type(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(_type(part) for part in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type") or schema.get("$ref", "any").rpartition("/")[2])


def _links(schema: Mapping[str, Any]) -> str:
    """Names of the schemas that a body may follow, each a link to it on the page."""
    options = schema.get("anyOf") or [schema]
    return " or ".join(
        f'<a href="#{escape(name)}">{escape(name)}</a>'
        if "$ref" in option and (name := option["$ref"].rpartition("/")[2])
        else f"a list of {_links(option['items'])}"
        if option.get("type") == "array"
        else escape(_type(option))
        if option
        else "nothing"
        for option in options
    )


def _prose(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _as_json(value: Any) -> str:
    return escape(json.dumps(value, indent=1, ensure_ascii=False))
