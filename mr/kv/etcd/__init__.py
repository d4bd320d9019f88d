"""The store on etcd, version 3 of its API, by gRPC."""

from mr.kv.etcd.store import EtcdStore

__all__ = ["EtcdStore"]
