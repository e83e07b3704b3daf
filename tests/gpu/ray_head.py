"""A Ray cluster on this machine for the sections of a call: it prints its address and ends when its input ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ANSWER = "ADDRESS "


@contextmanager
def cluster(num_cpus: int) -> Iterator[str]:
    """Start a cluster in another process; give its address. It is gone when the block ends."""
    command = [sys.executable, "-m", "tests.gpu.ray_head", str(num_cpus)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as head:
        assert head.stdin is not None
        assert head.stdout is not None
        try:
            address = next((line for line in head.stdout if line.startswith(ANSWER)), "")
            if not address:
                raise RuntimeError("Ray did not start on this machine: see the lines above")
            yield address.removeprefix(ANSWER).strip()
        finally:
            head.stdin.close()


def main() -> None:
    """Start the cluster and wait for the end of the input."""
    import ray

    ray.init(address="local", num_cpus=int(sys.argv[1]), include_dashboard=False, log_to_driver=False)
    print(f"{ANSWER}{ray.get_runtime_context().gcs_address}", flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
