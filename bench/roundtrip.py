"""Round trip of a blocking POST: a no-op map and reduce, durable, beside a bare Flask POST under the same gunicorn.

    python bench/roundtrip.py [rounds]

The two take turns, so that the ratio holds where the machine's speed drifts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from served import Client, bare_flask, percentile, platform


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1000


def main(rounds: int) -> None:
    with bare_flask() as peer_url, platform() as served:
        peer, ours = Client(peer_url), Client(served.url)
        body = {"arguments": {"n": 1}}
        assert ours.post("/job/bench/noop", body) == {"result": {"pairs": [["n", 1]]}}
        for _ in range(20):
            peer.post("/", body)
            ours.post("/job/bench/noop", body)
        bare, full = [], []
        for _ in range(rounds):
            bare.append(timed(lambda: peer.post("/", body)))
            full.append(timed(lambda: ours.post("/job/bench/noop", body)))
        for name, values in (("bare Flask POST", bare), ("POST, map, reduce", full)):
            print(f"{name:20} p50 {percentile(values, 0.5):6.2f} ms   p99 {percentile(values, 0.99):6.2f} ms")
        ratio = [percentile(full, share) / percentile(bare, share) for share in (0.5, 0.99)]
        print(f"{'ratio':20} p50 {ratio[0]:6.1f}      p99 {ratio[1]:6.1f}")
        peer.close()
        ours.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
