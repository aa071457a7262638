"""`python -m backend` runs the API with the settings of the environment.

::

    python -m backend                                        serve
    python -m backend models                                 load models for an API without torch
    python -m backend token add NAME --scope submit --days 90    print a new token, once
    python -m backend token list
    python -m backend token revoke ID
"""

import argparse
import logging
import sys

from pydantic import ValidationError

from backend.http.authentication import hash_token
from backend.logs import set_up
from backend.server import serve
from backend.settings import load_settings, new_token
from backend.store import migrations
from backend.store.engine import open_engine
from backend.store.stores import Stores
from calift_core.errors import CaliftError, NotFoundError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backend", description="The calift REST API.")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("models", help="load models for an API without torch (CALIFT_MODELS_URL)")
    token = commands.add_parser("token", help="tokens for other people and machines")
    actions = token.add_subparsers(dest="action", required=True)
    add = actions.add_parser("add", help="make a token and print it, once")
    add.add_argument("name", help="whose it is")
    add.add_argument("--scope", choices=("read", "submit", "admin"), default="submit")
    add.add_argument("--days", type=float, default=None, help="until it expires; left out: never")
    actions.add_parser("list", help="show tokens, without their secrets")
    revoke = actions.add_parser("revoke", help="make a token worthless")
    revoke.add_argument("id")
    return parser


def _tokens(options: argparse.Namespace) -> None:
    settings = load_settings()
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Stores.on(open_engine(settings.database_url))
    try:
        migrations.upgrade(store.engine)
        if options.action == "add":
            token = new_token()
            store.tokens.add(
                token.partition(".")[0],
                name=options.name[:120],
                scope=options.scope,
                secret_sha256=hash_token(token),
                ttl_s=None if options.days is None else options.days * 86_400.0,
            )
            sys.stdout.write(f"{token}\n")
        elif options.action == "revoke":
            if not store.tokens.revoke(options.id):
                raise NotFoundError(
                    f"there is no token {options.id!r} that is not revoked already."
                )
        else:
            for known in store.tokens.all():
                state = "revoked" if known.revoked else "expired" if known.expired else "valid"
                sys.stdout.write(f"{known.id}\t{known.scope}\t{state}\t{known.name}\n")
    finally:
        store.close()


def main() -> int:
    """Do what the command line says; a wrong setting is a sentence and not a traceback."""
    options = _parser().parse_args()
    try:
        level = logging.WARNING if options.command == "token" else logging.INFO
        set_up(load_settings().log_format, level=level)
        if options.command == "token":
            _tokens(options)
        else:
            serve(models=options.command == "models")
    except (CaliftError, ValidationError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
