"""torchrun whose last words are those of the stage: `python -m cifarflow.launch --nproc-per-node 2 stages/train.py`.

It takes torchrun's own options. torchrun by itself ends with a traceback of its launcher whenever a process ends with
an error or is interrupted, below the line that says why. And it listens on every network interface, for processes of
other machines, also where there are none: here those of one machine meet on loopback.
"""

import argparse
import logging
import os
import socket
import sys
import uuid

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.run import parse_args, parse_min_max_nnodes, run

from cifarflow import errors, stage

# They tell of a failure a second time, in a page, and of threads, whose number the stage chooses itself.
QUIET = (
    "torch.distributed.elastic",
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.run",
)
LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACES = ("lo", "lo0")  # of Linux, of macOS
BACKEND = "loopback"
MEETING_SECONDS = 600


class LoopbackRendezvous(StaticTCPRendezvous):
    """Where the processes of this machine meet; torch's own store can't be told which address to listen at."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        listening = socket.create_server((LOOPBACK, 0))
        port = listening.getsockname()[1]
        super().__init__(
            LOOPBACK, port, rank=0, world_size=1, run_id=parameters.run_id, timeout=MEETING_SECONDS
        )
        self._store = TCPStore(
            LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
        )

    def get_backend(self) -> str:
        return BACKEND


def stay_on_loopback(arguments: argparse.Namespace) -> None:
    """Have the processes of one machine meet there, unless the arguments say where to meet."""
    if parse_min_max_nnodes(arguments.nnodes) != (1, 1):
        return
    if not arguments.standalone and _names_a_meeting_place(arguments):
        return
    rendezvous_handler_registry.register(BACKEND, LoopbackRendezvous)
    arguments.standalone = False  # or it would choose torch's own
    arguments.rdzv_backend, arguments.rdzv_endpoint = BACKEND, LOOPBACK
    arguments.rdzv_id = str(uuid.uuid4())
    # gloo, which adds up what processors computed, takes the interface of the machine's name otherwise.
    for _, interface in socket.if_nameindex():
        if interface in LOOPBACK_INTERFACES:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _names_a_meeting_place(arguments: argparse.Namespace) -> bool:
    return (
        arguments.rdzv_backend != "static"
        or bool(arguments.rdzv_endpoint)
        or arguments.master_port is not None
    )


def main() -> int:
    """Run torchrun on the command line's arguments and return what the shell would: the first process' exit code."""
    stage.end_with_dvc()
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        arguments = parse_args(sys.argv[1:])
        stay_on_loopback(arguments)
        run(arguments)
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ValueError as error:
        raise errors.ConfigError(f"train.launch in params.yaml: {error}") from error
    return 0


if __name__ == "__main__":
    sys.exit(errors.run(main))
