"""Round trip of a blocking POST: a no-op map and reduce, durable, beside a bare Flask POST under the same gunicorn.

    python bench/roundtrip.py [--cluster] [rounds]

With --cluster also on an etcd and an nsqd. All take turns, so that the ratios hold where the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from served import Client, bare_flask, percentile, platforms


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1000


def main(rounds: int, with_cluster: bool) -> None:
    with bare_flask() as peer_url, platforms(with_cluster) as served:
        body = {"arguments": {"n": 1}}
        posts: dict[str, Callable[[], object]] = {}
        clients = [Client(peer_url)]
        posts["bare Flask POST"] = lambda client=clients[0]: client.post("/", body)  # type: ignore[misc]
        for name, one in served.items():
            clients.append(Client(one.url))
            posts[f"{name}: POST, map, reduce"] = lambda client=clients[-1]: client.post("/job/bench/noop", body)  # type: ignore[misc]
            assert clients[-1].post("/job/bench/noop", body) == {"result": {"pairs": [["n", 1]]}}
        for _ in range(20):
            for post in posts.values():
                post()
        took: dict[str, list[float]] = {name: [] for name in posts}
        for _ in range(rounds):
            for name, post in posts.items():
                took[name].append(timed(post))
        bare = [percentile(took["bare Flask POST"], share) for share in (0.5, 0.99)]
        for name, values in took.items():
            p50, p99 = (percentile(values, share) for share in (0.5, 0.99))
            print(
                f"{name:28} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   "
                f"ratio p50 {p50 / bare[0]:5.1f}   p99 {p99 / bare[1]:5.1f}"
            )
        for client in clients:
            client.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("rounds", type=int, nargs="?", default=500)
    options = parser.parse_args()
    main(options.rounds, options.cluster)
