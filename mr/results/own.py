"""Result writers of one's own: a class that a setting names."""

from __future__ import annotations

import importlib
import logging

from mr.errors import DeliveryFailed, InvalidInput
from mr.results.base import ResultWriter
from mr.results.reading import Result

SETTING = "MR_RESULT_WRITER_FQ_CLASS"

log = logging.getLogger(__name__)


def load(path: str) -> type[ResultWriter]:
    """The class of that name, ``package.module.Class``.

    :raises InvalidInput: there is none, its module cannot be imported, or it is no result writer.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:
        # What is imported is others' code, in which anything may go wrong.
        raise InvalidInput(
            f"{SETTING} names {path}, and {module} cannot be imported: {type(error).__name__}: {error}", SETTING
        ) from error
    base = f"{ResultWriter.__module__}.{ResultWriter.__name__}"
    if found is None:
        raise InvalidInput(f"{SETTING} names {path}, but there is no {name} in {module}.", SETTING)
    if not isinstance(found, type) or not issubclass(found, ResultWriter):
        raise InvalidInput(f"{SETTING} names {path}, which is no subclass of {base}.", SETTING)
    return found


def write(path: str, result: Result) -> None:
    """
    :raises InvalidInput: see :func:`load`.
    :raises DeliveryFailed: the writer raised it, or anything else.
    """
    writer = load(path)
    try:
        writer().write(result.request, result.pairs())
    except DeliveryFailed:
        raise
    except (Exception, SystemExit) as error:
        request = result.request
        fields = {"workflow": request.workflow_name, "request": request.request_id}
        log.warning("the result writer %s failed", path, exc_info=True, extra=fields)
        raise DeliveryFailed(f"{path} raised {type(error).__name__}: {error}") from error
