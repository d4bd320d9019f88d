"""Who is told what: notifications of requests that ended, messages of handlers, and news of changed handlers."""
