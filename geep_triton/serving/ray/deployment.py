"""The server as a deployment of Ray Serve: as many replicas as are wanted, one engine each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from geep_triton.engine.source import EngineSource
from geep_triton.serving.application import make_application
from geep_triton.serving.ray.needed import check_ray
from geep_triton.serving.settings import ServerSettings

if TYPE_CHECKING:
    from ray.serve import Application as Deployed


def deployment(source: EngineSource, settings: ServerSettings | None = None, **options: Any) -> Deployed:
    """The server for `ray.serve.run(deployment(EngineSource("/runs/fast"), num_replicas=2))`.

    Each replica is a whole server with routes, limits and batches of its own, and `/metrics` tells of the one that it asks.

    Args:
        source: of the replicas' engines.
        settings: of each replica; None: the defaults.
        **options: of `ray.serve.deployment`, e.g. num_replicas, max_ongoing_requests, ray_actor_options, autoscaling_config.

    Raises:
        ImportError: Ray is not installed.
        ValueError, TypeError: Ray does not know an option.
    """
    check_ray()
    from ray import serve

    from_here = source.absolute()

    def build() -> ASGIApp:
        return make_application(from_here.load(), settings)

    in_hand = (settings or ServerSettings()).max_concurrent_requests
    # Ray's own limit is 5 requests, and who is beyond it waits unseen. The server refuses by 429 before this one is reached.
    defaults = {"name": "geep_triton", "max_ongoing_requests": 2 * in_hand}
    return serve.deployment(**{**defaults, **options})(serve.ingress(build)()).bind()
