"""The shared filesystem: what is too large for the store. One module a technology."""
