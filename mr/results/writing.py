"""Which writer delivers a result, and whether this platform has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mr.config import Config
from mr.errors import CorruptRecord, DeliveryFailed, FilesUnavailable, ForbiddenURL, InvalidInput
from mr.findings import Finding
from mr.fs.base import Files
from mr.kv.base import Store
from mr.model import keys, secrets
from mr.model.deliveries import Delivery, Writer, check_url, parse_writer
from mr.model.entities import Request, Workflow, decode
from mr.outgoing.settings import guard, mailer
from mr.results import file, http, mail, own, places, reading
from mr.results.reading import Result


class ResultWriters:
    """Delivers what is owed of the kind ``result``. For many threads."""

    def __init__(self, config: Config, store: Store, files: Files) -> None:
        self._config, self._store, self._files = config, store, files
        self._writers: dict[str, Callable[[Writer, Result, Delivery], None]] = {
            "inline": lambda writer, result, delivery: None,
            "file": self._write_file,
            "email": self._send,
            "http": self._post,
            "class": self._write_by_class,
        }

    def write(self, delivery: Delivery) -> None:
        """Returns once the result is where its writer delivers. May be repeated, also by two workers at once.

        :raises DeliveryFailed: it is not; final, where it never will be.
        :raises StoreUnavailable: the result cannot be read now.
        """
        writer = parse_writer(delivery.target)
        try:
            self._writers[writer.kind](writer, self._result(delivery), delivery)
        except ForbiddenURL as error:
            raise DeliveryFailed(str(error), is_final=True) from error
        except (InvalidInput, FilesUnavailable, CorruptRecord) as error:
            # A setting can be corrected in time, and a filesystem mounted.
            raise DeliveryFailed(str(error), spares_place=True) from error

    def _result(self, delivery: Delivery) -> Result:
        key = keys.request(delivery.workflow_name, delivery.request_id or "")
        [entry] = self._store.get([key])
        request = None if entry is None else decode(Request, key, entry.value)
        parts = None if request is None or request.state != "done" else reading.outputs(self._store, request)
        if request is None or parts is None:
            raise DeliveryFailed(f"The request {delivery.request_id} has no result any more.", is_final=True)
        return Result(request, self._files, parts)

    def _write_file(self, writer: Writer, result: Result, delivery: Delivery) -> None:
        file.write(self._config, writer, result, delivery.delivery_id)

    def _send(self, writer: Writer, result: Result, delivery: Delivery) -> None:
        mail.send(self._config, _recipients(self._config, writer), result, delivery.delivery_id)

    def _post(self, writer: Writer, result: Result, delivery: Delivery) -> None:
        key = keys.workflow(delivery.workflow_name)
        [entry] = self._store.get([key])
        allow = [] if entry is None else decode(Workflow, key, entry.value).outgoing_allow
        signers = secrets.of_workflow(self._store, delivery.workflow_name)
        http.post(_url(self._config, writer), result, guard(self._config, allow), signers, delivery.delivery_id)

    def _write_by_class(self, writer: Writer, result: Result, delivery: Delivery) -> None:
        own.write(writer.place, result)


def check(config: Config, writer: str, outgoing_allow: Sequence[str] = ()) -> None:
    """Whether this platform delivers results by that writer, as far as can be said without trying it.

    ``outgoing_allow`` is the workflow's.

    :raises InvalidInput: it does not; the message says what is missing.
    """
    chosen = parse_writer(writer)
    try:
        if chosen.kind == "file":
            places.check(config, chosen)
        elif chosen.kind == "email":
            mailer(config).check(_recipients(config, chosen))
        elif chosen.kind == "http":
            guard(config, outgoing_allow).check_form(_url(config, chosen))
        elif chosen.kind == "class":
            own.load(chosen.place)
    except InvalidInput as error:
        error.parameter = "writer"
        raise


def examine(config: Config) -> list[Finding]:
    """What there is to say of the platform's own writer, and of its directory. Nothing is written, and nobody asked."""
    found = []
    default = config.result_writer_fq_class
    try:
        check(config, default)
    except InvalidInput as error:
        text = f"Results go to the writer {default!r} unless somebody says otherwise, which cannot be: {error}"
        found.append(Finding("problem", "results", text, "Correct the settings MR_RESULT_…; posts are refused."))
    root = config.result_file_writer_output_path
    return [*found, *(file.examine(root) if root else [])]


def _recipients(config: Config, writer: Writer) -> list[str]:
    """
    :raises InvalidInput: the platform was to say who they are, and does not.
    """
    recipients = writer.place.split(",") if writer.place else list(config.result_email_writer_to_list)
    if not recipients:
        setting = "MR_RESULT_EMAIL_WRITER_TO_LIST"
        raise InvalidInput(f"The writer 'email' has no recipients here: {setting} is not set.", setting)
    return recipients


def _url(config: Config, writer: Writer) -> str:
    """
    :raises InvalidInput: the platform was to give it, and does not.
    """
    setting = "MR_RESULT_HTTP_WRITER_SERVER_URL"
    if writer.place:
        return writer.place
    if not config.result_http_writer_server_url:
        raise InvalidInput(f"The writer 'http' has no URL here: {setting} is not set.", setting)
    return check_url(config.result_http_writer_server_url, setting)
