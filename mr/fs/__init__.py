"""The shared filesystem: what is too large for the store, and what workflows keep. One module a technology."""
