"""The process of one contender of ``tapwb bench decode``: one JSON request a line in, one JSON reply a line out.

Started by :mod:`tapwb.evals.decode_bench`. What the libraries print goes to the standard error stream.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

from tapwb.core.threads import wait_without_spinning
from tapwb.evals.decode_peers import peer_of
from tapwb.evals.decode_peers.contender import Contender


def contender_of(name: str, cells: str, group_size: int | None) -> Contender:
    """``tap:PRECISION`` is this program; anything else a peer."""
    if name.startswith("tap:"):
        from tapwb.evals.decode_peers.tap import TapContender

        return TapContender(name.removeprefix("tap:"), cells, group_size)
    return peer_of(name).make(name.partition(":")[2])


def _load(one: Contender, folder: str, text: str) -> dict[str, Any]:
    started = time.perf_counter()
    one.load(folder, text)
    return {
        "load_s": time.perf_counter() - started,
        "resident_bytes": psutil.Process().memory_info().rss,
        "weights_bytes": one.weights_bytes(),
    }


def _finish(one: Contender) -> dict[str, Any]:
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    resident = psutil.Process().memory_info().rss
    return {"resident_after_bytes": resident, "peak_bytes": peak, "facts": one.facts()}


def _actions(one: Contender) -> dict[str, Callable[..., Any]]:
    return {
        "load": lambda folder, text: _load(one, folder, text),
        "generate": lambda prompt, ids, n_new: one.generate(prompt, ids, n_new).to_json(),
        "score": lambda windows: one.nll_nats(windows),
        "gate": lambda prompt: one.gate(prompt) if hasattr(one, "gate") else [],
        "finish": lambda: _finish(one),
    }


def main() -> None:
    """Answer requests until the standard input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    wait_without_spinning()
    settings = json.loads(sys.argv[1])
    import torch

    torch.set_num_threads(settings["threads"])
    one = contender_of(settings["name"], settings["cells"], settings["group_size"])
    actions = _actions(one)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"result": actions[request.pop("do")](**request)}
        except Exception as error:  # noqa: BLE001 - another program's failure becomes its row's reason
            said = str(error).strip().splitlines() or [""]
            reply = {"failed": f"{type(error).__name__}: {said[0]}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
