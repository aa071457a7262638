"""A page by itself, outside of Streamlit."""

import base64
import html
from pathlib import Path

from starlette.responses import HTMLResponse, Response

HERE = Path(__file__).parent

_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;color:light-dark(#1c2733,#e6ebf0);
background:light-dark(#f5f7f9,#11171d);margin:0}
main{max-width:26rem;margin:12vh auto;padding:2rem;
background:light-dark(#fff,#1a232c);
border:1px solid light-dark(#e1e6eb,#2f3b46);border-radius:.5rem}
img{height:2rem}h1{font-size:1.25rem;margin:1rem 0 .5rem}
p{margin:.5rem 0;color:light-dark(#4a5763,#a9b6c3)}
label{display:block;font-weight:600;margin-top:1rem}
input{width:100%;box-sizing:border-box;font:inherit;padding:.5rem;margin:.25rem 0 1rem;
border:1px solid light-dark(#8a97a3,#6d7b88);border-radius:.4rem}
button,a.button{font:inherit;display:inline-block;text-decoration:none;font-weight:600;color:#fff;background:#0b6394;border:0;border-radius:.4rem;
padding:.5rem 1.25rem;cursor:pointer}
a:not(.button){color:light-dark(#0b6394,#74bdec)}
code{background:light-dark(#f0f3f6,#26313b);padding:0 .25rem;border-radius:.25rem}
p.said{color:light-dark(#8a1c1c,#ffaab1);font-weight:600}
"""


def html_page(title: str, body: str, *, status: int = 200, again: str | None = None) -> Response:
    """A page with the logo; with `again` the browser asks for it once more at once."""
    logo, icon = (
        "data:image/svg+xml;base64," + base64.b64encode((HERE / name).read_bytes()).decode()
        for name in ("logo.svg", "icon.svg")
    )
    refresh = "" if again is None else '<meta http-equiv="refresh" content="0">'
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'{refresh}<title>{html.escape(title)} · calift</title><link rel="icon" href="{icon}">'
        f"<style>{_STYLE}</style></head>"
        f'<body><main><img alt="calift" src="{logo}">'
        f"<h1>{html.escape(title)}</h1>{body}</main></body></html>",
        status,
        headers={"Cache-Control": "no-store"},
    )
