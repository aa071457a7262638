"""What README and the documents tell people to type exists, and so does what they link."""

from __future__ import annotations

import html
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
import yaml

from backend.settings import check_token
from calift.commands.main import app
from calift_core.schema.spec import parse_spec
from tests.conftest import unavailable

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*=\S*")


def typed(text: str) -> Iterator[str]:
    """Command lines of a document: of its shell blocks and in its sentences."""
    blocks = _BLOCK.findall(text)
    for language, body in blocks:
        if language == "sh":
            yield from body.replace("\\\n", " ").splitlines()
    yield from _SPAN.findall(_BLOCK.sub("", text))


def words_of(line: str) -> list[str]:
    """A command line without its comment and what is set before it."""
    words = shlex.split(line, comments=True) if "'" not in line or line.count("'") % 2 == 0 else []
    while words and _VARIABLE.fullmatch(words[0]):
        words.pop(0)
    return words


def command_lines(path: Path, *names: str) -> list[list[str]]:
    """Command lines in a document that begin with one of some names."""
    found = [words_of(line) for line in typed(path.read_text(encoding="utf-8"))]
    return [words for words in found if words and words[0] in names]


def fault_of(words: list[str]) -> str:
    """What is wrong with the words after `calift`, or nothing."""
    command: Any = typer.main.get_command(app)
    words = list(words)
    while hasattr(command, "commands"):
        if not words:
            return ""
        name = words.pop(0)
        if name.startswith("-"):
            known = {o for p in command.params for o in p.opts}
            return "" if name in known | {"--help"} else f"no option {name}"
        # Several at once: `metrics|audit`.
        subs = [command.commands.get(part) for part in name.split("|")]
        if None in subs:
            return f"no command {name!r}"
        command = subs[0]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    for word in words:
        option = word.split("=")[0]
        if option.startswith("--") and option not in known:
            return f"no option {option}"
    return ""


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_documents__every_command_line_of_calift_exists(path):
    lines = command_lines(path, "calift", ".venv/bin/calift")
    faults = {" ".join(words): fault for words in lines if (fault := fault_of(words[1:]))}
    assert faults == {}


def test_help__every_command_stands_in_a_panel_with_an_example_that_is_valid():
    command: Any = typer.main.get_command(app)
    for name, one in command.commands.items():
        assert one.rich_help_panel in {
            "Data",
            "Train",
            "Judge",
            "Export model",
            "Service",
            "Operate",
        }
        program, *words = words_of(one.epilog.removeprefix("Example: "))
        assert (program, words[0], fault_of(words)) == ("calift", name, "")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_examples__say_how_they_are_started_and_are_valid(example):
    text = example.read_text(encoding="utf-8")
    lines = re.findall(r"^#\s+(calift .*)$", text, re.MULTILINE)
    assert lines
    for line in lines:
        words = words_of(line)
        assert fault_of(words[1:]) == ""
        assert any((ROOT / word).is_file() for word in words), f"{line!r} names no file"
    parse_spec(yaml.safe_load(text))


def test_fault_of__finds_what_is_not_there():
    assert fault_of(["train", "x.yaml", "--out", "y"]) == ""
    assert fault_of(["analyse", "metrics|audit", "X"]) == ""
    assert "no option" in fault_of(["train", "x.yaml", "--ouch"])
    assert "no command" in fault_of(["analyse", "metrics|nothing"])
    assert "no command" in fault_of(["trian"])


def test_readme__has_lines_of_every_kind():
    readme = ROOT / "README.md"
    assert len(command_lines(readme, "calift")) >= 8
    assert len(command_lines(readme, ".venv/bin/calift")) >= 1
    assert len(command_lines(readme, "make")) >= 5
    assert len(command_lines(readme, "docker")) >= 1


def test_documents__every_target_of_make_exists():
    for path in DOCUMENTS:
        rules = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = {
            t for line in re.findall(r"^([\w. -]+):(?!=)", rules, re.M) for t in line.split()
        }
        for words in command_lines(path, "make"):
            requested = [w for w in words[1:] if not w.startswith("-") and "=" not in w]
            assert set(requested) <= targets, (
                f"{path.name}: make {' '.join(requested)} is no target"
            )


def test_documents__every_script_that_is_run_exists():
    for path in DOCUMENTS:
        for words in command_lines(path, "python", ".venv/bin/python"):
            if words[1:2] == ["-m"]:
                place = ROOT.joinpath(*words[2].split("."))
                known = place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()
                assert known or words[2] in ("pip", "pytest"), (path.name, words)
            elif words[1:] and words[1].endswith(".py"):
                assert (ROOT / words[1]).is_file(), (path.name, words)


def test_documents__every_linked_file_and_heading_exists():
    for path in DOCUMENTS:
        for link in _LINK.findall(_BLOCK.sub("", path.read_text(encoding="utf-8"))):
            if link.startswith(("http://", "https://", "mailto:")):
                continue
            name, _, heading = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.exists(), f"{link} of {path.name} is not there"
            if heading:
                titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {
                    re.sub(r"[^\w -]", "", t.lower()).strip().replace(" ", "-") for t in titles
                }
                assert heading in slugs, f"{link} of {path.name}: no such heading"


def test_readme__its_spec_is_valid():
    blocks = _BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    (spec,) = (yaml.safe_load(body) for language, body in blocks if language == "yaml")
    assert parse_spec(spec).method.kind == "carot"  # type: ignore[union-attr]


def test_documents__what_pip_is_to_install_is_not_looked_for_in_an_index():
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install[^\n`]*[ '\"]calift\b(?! @)", text), (
            f"no index has calift: {path.name}"
        )
        assert not re.search(r"^\|[^\n]*`calift\[", text, re.MULTILINE), path.name
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for named in re.findall(r"'\.\[([\w,]+)\]'", text):
            assert set(named.split(",")) <= set(extras["optional-dependencies"]), path.name


# ---- What docker compose reads -----------------------------------------------------------------


def compose_file() -> str:
    return (ROOT / "docker-compose.yml").read_text(encoding="utf-8")


def interpolated(text: str, variables: dict[str, str]) -> Any:
    """The compose file as compose reads it: `${NAME:?message}`, `${NAME:-default}`, `${NAME}`."""

    def value(match: re.Match[str]) -> str:
        name, how, more = match[1], match[2], match[3] or ""
        if variables.get(name):
            return variables[name]
        if how == ":?":
            raise KeyError(f"{name} {more}")
        return more

    return yaml.safe_load(re.sub(r"\$\{(\w+)(:[?-])?([^}]*)\}", value, text))


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    """The `.env` that `make .env` makes in a folder with the checkout's files."""
    for name in ("Makefile", ".env.example"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    subprocess.run(["make", ".env"], cwd=tmp_path, check=True, capture_output=True, timeout=30)
    return tmp_path / ".env"


def variables_of(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def test_compose__starts_with_what_make_env_makes_and_not_without(env_file):
    with pytest.raises(KeyError, match="is not set; make .env"):
        interpolated(compose_file(), {})
    made = variables_of(env_file)
    services = interpolated(compose_file(), made)["services"]
    assert set(services) == {"postgres", "redis", "api", "models", "worker", "dashboard", "proxy"}
    # Several dashboards cannot have one port of the machine: visitors come through the proxy.
    assert services["dashboard"]["deploy"]["replicas"] == 2
    assert [name for name, service in services.items() if "ports" in service] == ["api", "proxy"]
    mounted = services["proxy"]["volumes"][0].partition(":")[0]
    assert "server-template dashboard 1-8 dashboard:8501" in (ROOT / mounted).read_text()
    url = services["api"]["environment"]["CALIFT_DATABASE_URL"]
    assert f"calift:{made['POSTGRES_PASSWORD']}@" in url
    assert check_token(services["api"]["environment"]["CALIFT_TOKEN"], "CALIFT_TOKEN")
    for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD"):
        assert re.fullmatch(r"[0-9a-f]{48}", made[name])
    assert env_file.stat().st_mode & 0o077 == 0
    again = env_file.read_bytes()
    subprocess.run(["make", ".env"], cwd=env_file.parent, check=True, capture_output=True)
    assert env_file.read_bytes() == again, "databases keep the passwords that they were made with"


def test_compose__every_variable_is_told_in_the_example():
    used = set(re.findall(r"\$\{(\w+)|^  ([A-Z_]+):$", compose_file(), re.MULTILINE))
    used = {name or as_it_is for name, as_it_is in used}
    gpu = (ROOT / "docker-compose.gpu.yml").read_text(encoding="utf-8")
    used |= set(re.findall(r"\$\{(\w+)", gpu))
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    answer = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=", text, re.MULTILINE))
    assert used == answer


# ---- Paths and modules that documents name ------------------------------------------------------

_OURS = r"(?:calift|calift_core|backend|worker|frontend|tests|benchmarks|research|docs|examples)"
_PATH = re.compile(rf"{_OURS}/[\w./-]*")
_MODULE = re.compile(rf"{_OURS}(?:\.\w+)+")


def named_places(text: str) -> set[str]:
    """Paths and modules of the project in a document's backticks and its Python blocks."""
    spans = [span.split()[0] for span in _SPAN.findall(_BLOCK.sub("", text)) if span.strip()]
    found = {m[0].rstrip("/.") for span in spans if (m := _PATH.match(span))}
    found |= {m[0] for span in spans if (m := _MODULE.fullmatch(span.partition("(")[0]))}
    for language, body in _BLOCK.findall(text):
        if language == "python":
            imported = re.findall(rf"^from ({_OURS}[\w.]*) import (.+)$", body, re.MULTILINE)
            found |= {f"{module}.{name.strip()}" for module, n in imported for name in n.split(",")}
    return found


def is_there(place: str) -> bool:
    """Whether a path exists, or a module that has the rest of a dotted name."""
    if "/" in place:
        return (ROOT / place).exists()
    folder, parts = ROOT, place.split(".")
    while parts and (folder / parts[0]).is_dir():
        folder /= parts.pop(0)
    file = folder / f"{parts[0]}.py" if parts else folder
    if parts and file.is_file():
        parts.pop(0)
    elif parts:
        file = folder / "__init__.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return all(re.search(rf"\b{part}\b", text) for part in parts)


def test_documents__every_path_and_module_that_is_named_exists():
    for path in DOCUMENTS:
        places = named_places(path.read_text(encoding="utf-8"))
        assert sorted(place for place in places if not is_there(place)) == [], path.name


def test_is_there__finds_what_is_not():
    text = "`backend/store.py` `calift_core/data/` `calift_core.cli` `calift_core.client.Client(x)`"
    assert {place for place in named_places(text) if not is_there(place)} == {
        "backend/store.py",
        "calift_core.cli",
    }


def test_architecture__walks_three_ways_and_is_one_page():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert len(named_places(text)) > 40
    assert len(text.splitlines()) < 80
    assert "](img/architecture.svg)" in text
    hops = re.findall(r"^\d+\. (.*)$", text, re.MULTILINE)
    assert [hop for hop in hops if not hop.startswith("`")] == []


# ---- The site that `make docs` makes -------------------------------------------------------------


def test_site__is_built_and_no_link_of_a_page_leads_nowhere(tmp_path):
    if any(importlib.util.find_spec(name) is None for name in ("mkdocs", "mkdocstrings")):
        unavailable("mkdocs is not installed: pip install -e '.[docs]'")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(site)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert len(pages) >= 15
    ids = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    dead = set()
    for page, text in pages.items():
        if page.name == "404.html":  # its links are absolute, for wherever the site lies
            continue
        for link in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', text):
            name, _, heading = html.unescape(link).partition("#")
            if name.startswith(("http://", "https://", "mailto:", "javascript:")):
                continue
            target = (page.parent / unquote(name)).resolve() if name else page
            found = target.is_file() and (not heading or heading in ids.get(target, {heading}))
            if not found and heading != "__skip":
                dead.add(f"{page.relative_to(site)}: {link}")
    assert sorted(dead) == []
    assert "calift_core.calibration.ece" in ids[site / "python" / "calibration.html"]
    assert "calift_core.client.Client.submit" in ids[site / "python" / "client.html"]
