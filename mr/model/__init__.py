"""Entities, manifests and collections, on kv.base."""
