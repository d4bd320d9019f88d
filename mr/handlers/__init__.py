"""Handlers: header, compiler, sync, scope, processors, and the runner processes that run them."""
