"""`geep serve`: answer over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from geep_triton.cli import options
from geep_triton.cli.console import results_alone, say
from geep_triton.engine.engine import Engine
from geep_triton.policies.text import describe


def serve(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a model with exits, as `geep exits` writes it.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is open to other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.")] = 8080,
    policy: Annotated[str | None, typer.Option(help="By default as calibrated, else full.")] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    runner: options.RunnerName = "auto",
    max_length: options.MaxLength = None,
    truncate: options.Truncate = False,
    quiet: options.Quiet = False,
) -> None:
    """Answer over HTTP, on the routes of text-embeddings-inference: /predict, /rerank, /health, /info.

    SIGTERM or Ctrl-C stop it, after what runs. It needs the extra `serve`: FastAPI and uvicorn.
    """
    try:
        from geep_triton.serving.server import Server
    except ImportError as error:
        raise ImportError(f"geep serve needs FastAPI and uvicorn: pip install 'geep-triton[serve]' ({error})") from error
    with results_alone(quiet):
        engine = Engine.from_pretrained(
            model,
            policy,
            device=device,
            dtype=dtype,
            runner=runner,
            max_length=max_length,
            truncation=truncate or None,
        )
        server = Server(engine, host, port)
        say(f"{server.url} answers by {describe(engine.policy)} in {engine.dtype} on {engine.model.device}", quiet)
        server.run()
    raise KeyboardInterrupt  # only a signal ends it, and asyncio may lose that of Ctrl-C
