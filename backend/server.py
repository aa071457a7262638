"""Serving the application with uvicorn, and stopping without leaving streams behind."""

import socket

import uvicorn
from fastapi import FastAPI

from backend.main import create_app, create_models_app
from backend.settings import Settings, load_settings


class Server(uvicorn.Server):
    """uvicorn, which tells event streams to end when it is told to.

    Streams never end by themselves, and uvicorn would otherwise wait for them and then break them
    off with a traceback each. A client takes up an ended stream where it was.

    Args:
        app: made by `create_app`.
        port: port to bind to; 0 takes a free one.
    """

    def __init__(self, app: FastAPI, *, host: str, port: int) -> None:
        self._stopping = app.state.services.stopping
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                access_log=False,
                # httptools, which other packages may bring, answers an unknown method by itself,
                # and not in the form that is documented.
                http="h11",
                ws="none",  # the API has no web sockets, and their packages warn of each other
                timeout_graceful_shutdown=5,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then everything else."""
        self._stopping.set()
        await super().shutdown(sockets)


def serve(settings: Settings | None = None, *, models: bool = False) -> None:
    """Run the API until a signal comes.

    Args:
        settings: None reads `CALIFT_…` from the environment.
        models: only what loads models for an API that has no torch.

    Raises:
        SpecError: the bind would be exposed without tokens and host names.
        StorageError: the token file cannot be used.
    """
    settings = settings or load_settings()
    app = create_models_app(settings) if models else create_app(settings)
    Server(app, host=settings.host, port=settings.port).run()
