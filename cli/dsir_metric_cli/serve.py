"""`dsir-metric serve`: a model behind HTTP and gRPC."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import click

from dsir_metric.serve import Endpoints, ServeConfig, serve
from dsir_metric_cli.options import PATH, debug_option, model_options

__all__ = ["command"]


@click.command()
@click.option("--name", metavar="NAME", help="What clients call the model.  [default: masrnet]")
@click.option("--host", metavar="ADDRESS", help="Where to listen.  [default: 127.0.0.1, this machine alone]")
@click.option("--http-port", type=int, metavar="N", help="0 for any that is free.  [default: 8000]")
@click.option("--grpc-port", type=int, metavar="N", help="0 for any that is free.  [default: 8001]")
@click.option("--tls-cert", "certificate", type=PATH, metavar="FILE", help="Encrypt with this certificate, PEM.")
@click.option("--tls-key", "key", type=PATH, metavar="FILE", help="Its key, PEM.")
@click.option("--fp32", "precision", flag_value="fp32", default=None, help="Answer in single precision.")
@click.option("--max-voxels", type=int, metavar="N", help="Largest image of one request.  [default: 16 million]")
@click.option(
    "--max-cost",
    type=int,
    metavar="N",
    help="Most that one request may cost, in computed voxels: those of all tiles, halos and padding included, on "
    "average of both halves of the network.  [default: 3 times --max-voxels]",
)
@click.option("--concurrency", type=int, metavar="N", help="Requests computed at the same time.  [default: 1]")
@click.option("--queue", type=int, metavar="N", help="Requests that may wait.  [default: 64]")
@click.option(
    "--max-connections",
    type=int,
    metavar="N",
    help="Connections for HTTP and for gRPC each; an idle one makes way for a new one.  [default: 512]",
)
@click.option(
    "--buffer-mb",
    type=int,
    metavar="N",
    help="Megabytes of requests and answers held in memory, of all clients; more are not read.  [default: 256]",
)
@click.option(
    "--patience", "patience_s", type=int, metavar="S", help="Seconds a client may let it wait.  [default: 60]"
)
@click.option(
    "--grace", "grace_s", type=int, metavar="S", help="Seconds to finish requests in when stopped.  [default: 30]"
)
@model_options
@debug_option
def command(**given: Any) -> None:
    """Serve a model by HTTP and gRPC of the Open Inference Protocol, until SIGTERM or Ctrl-C.

    Clients name it with --model grpc://HOST:8001/masrnet or --model http://HOST:8000/v2/models/masrnet. Health is at
    /v2/health/ready, metrics are at /metrics. There is no password, and encryption only with --tls-cert; a gateway
    does both.

    Needs extras: pip install 'dsir-metric[cpu,serve]', or gpu in place of cpu.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("kserve", "uvicorn.error"):  # a traceback for every bad request is too much
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="ORJSONResponse")  # kserve's affair
    megabytes = given.pop("buffer_mb")
    given["buffer_bytes"] = None if megabytes is None else 1_000_000 * megabytes
    config = ServeConfig(**{name: value for name, value in given.items() if value is not None})
    serve(config, lambda endpoints: _announce(endpoints, config))


def _announce(endpoints: Endpoints, config: ServeConfig) -> None:
    card = endpoints.offer.card
    click.echo(
        f"serving {card.name} ({card.weights_hash[:12]}, {config.precision}) at {endpoints.http} and {endpoints.grpc}",
        err=True,
    )
    if config.host not in ("127.0.0.1", "::1", "localhost"):
        click.echo(
            f"warning: {config.host} can be reached from other machines, without a password"
            f"{'' if config.secure else ' or encryption'}: put a gateway or a firewall before it",
            err=True,
        )
