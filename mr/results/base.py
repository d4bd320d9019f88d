"""What a result writer of one's own builds on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from mr.model.entities import Request
from mr.model.pairs import Key


class ResultWriter(ABC):
    """Delivers results where the platform says so by ``MR_RESULT_WRITER_FQ_CLASS=package.module.Class``.

    One is made for each delivery, without arguments, by a worker, which has several threads.
    """

    @abstractmethod
    def write(self, request: Request, pairs: Iterator[tuple[Key, Any]]) -> None:
        """Returns once the result is delivered. ``pairs`` come one by one, and are read once; list keys are tuples.

        Whatever it raises has the delivery tried again later, unless that is a final
        :class:`mr.errors.DeliveryFailed`. It may be called again for a request that it has delivered, also by two
        workers at the same time: ``request.request_id`` tells them.
        """
