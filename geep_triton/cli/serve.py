"""`geep serve`: answer over HTTP."""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from geep_triton.cli import options
from geep_triton.cli.console import results_alone, say
from geep_triton.engine.source import EngineSource
from geep_triton.policies.text import describe
from geep_triton.serving.settings import ServerSettings


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
    audit: Annotated[
        float, typer.Option(help="Share of the texts that also run to the end, to see whether promises hold.")
    ] = ServerSettings.audit,
    max_wait_ms: Annotated[float, typer.Option(help="Longest wait for others to fill a batch, with nothing else to do.")] = (
        ServerSettings.max_wait_ms
    ),
    max_batch_tokens: Annotated[int | None, typer.Option(help="Most tokens that run together, by expected depth.")] = (
        ServerSettings.max_batch_tokens
    ),
    max_concurrent_requests: Annotated[int, typer.Option(help="Most requests in hand; more are answered 429.")] = (
        ServerSettings.max_concurrent_requests
    ),
    max_client_batch_size: Annotated[int, typer.Option(help="Most texts of a request; more are answered 413.")] = (
        ServerSettings.max_client_batch_size
    ),
    payload_limit: Annotated[
        int, typer.Option(help="Most bytes of a request; more are answered 413.")
    ] = ServerSettings.payload_limit,
    receive_timeout: Annotated[float, typer.Option(help="Seconds that a request's body may take; then 408.")] = (
        ServerSettings.receive_timeout
    ),
    drain_timeout: Annotated[int, typer.Option(help="Seconds that a stop waits for what is in hand; then that is cut.")] = 120,
    quiet: options.Quiet = False,
) -> None:
    """Answer over HTTP, on the routes of text-embeddings-inference: /predict, /rerank, /health, /info, /metrics.

    SIGTERM or Ctrl-C stop it, after what is in hand. It needs the extra `serve`: FastAPI, uvicorn and prometheus-client.
    """
    try:
        from geep_triton.serving.application import make_application
        from geep_triton.serving.server import Server
    except ImportError as error:
        needed = "FastAPI, uvicorn and prometheus-client: pip install 'geep-triton[serve]'"
        raise ImportError(f"geep serve needs {needed} ({error})") from error
    settings = ServerSettings(
        max_wait_ms=max_wait_ms,
        max_batch_tokens=max_batch_tokens,
        max_concurrent_requests=max_concurrent_requests,
        max_client_batch_size=max_client_batch_size,
        payload_limit=payload_limit,
        receive_timeout=receive_timeout,
        audit=audit,
    )
    with results_alone(quiet):
        engine = EngineSource(model, policy, device, dtype, runner, max_length, truncate or None).load()
        # What was loaded stays: to walk through it again and again takes most of the time in which a large body is read.
        gc.collect()
        gc.freeze()
        server = Server(make_application(engine, settings), host, port, drain_timeout)
        say(f"{server.url} answers by {describe(engine.policy)} in {engine.dtype} on {engine.model.device}", quiet)
        server.run()
    raise KeyboardInterrupt  # only a signal ends it, and asyncio may lose that of Ctrl-C
