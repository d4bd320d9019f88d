"""JobX: POST to a job's URL; handlers fan the work out, collect it, reduce it and answer."""

__version__ = "0.1.0"
