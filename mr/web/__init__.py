"""The HTTP side: turns posts into requests, waits for their ends, and answers."""
