"""The worker: consumes messages, runs flows side by side, and runs handlers in processes apart from itself."""
