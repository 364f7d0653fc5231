"""torchrun whose last words are those of the stage: `python -m cifarflow.launch --nproc-per-node 2 stages/train.py`.

It takes torchrun's own options. torchrun by itself ends with a traceback of its launcher whenever a process ends with
an error or is interrupted, below the line that says why.
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from cifarflow import errors

# They tell of a failure a second time, in a page, and of threads, whose number the stage chooses itself.
QUIET = (
    "torch.distributed.elastic",
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.run",
)


def main() -> int:
    """Run torchrun on the command line's arguments and return what the shell would: the first process' exit code."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run(parse_args(sys.argv[1:]))
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
