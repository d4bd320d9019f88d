"""Message queues: they wake workers. One module a technology."""
