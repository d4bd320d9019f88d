"""What etcd can say about its health."""

from __future__ import annotations

from mr.findings import Finding
from mr.kv.etcd.cluster import Cluster


def examine(cluster: Cluster) -> list[Finding]:
    return []
