"""A client of JobX for Python programs.

from mr.client import Client

with Client("http://127.0.0.1:8080") as jobx:
    print(dict(jobx.run("words", "wordcount", {"text": "to be or not to be"})))
"""

from mr.client.answers import Failure, RootProgress, Status, Submitted
from mr.client.client import Client, Pair
from mr.client.errors import (
    BrokenOff,
    Busy,
    ClientError,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotAllowed,
    NotThere,
    Refused,
    RequestGone,
    StillRunning,
    Unreachable,
)
from mr.model.progress import Cause, Counts, Progress, StepCounts, Waiting

__all__ = [
    "BrokenOff",
    "Busy",
    "Cause",
    "Client",
    "ClientError",
    "Counts",
    "Failure",
    "InvalidRequest",
    "JobCancelled",
    "JobFailed",
    "NotAllowed",
    "NotThere",
    "Pair",
    "Progress",
    "Refused",
    "RequestGone",
    "RootProgress",
    "Status",
    "StepCounts",
    "StillRunning",
    "Submitted",
    "Unreachable",
    "Waiting",
]
