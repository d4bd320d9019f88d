"""Tells people by mail, and programs by webhooks (https://www.standardwebhooks.com)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from mr import __version__
from mr.config import Config
from mr.errors import CorruptRecord, DeliveryFailed, ForbiddenURL, InvalidInput
from mr.findings import Finding
from mr.kv.base import Store
from mr.model import keys, secrets
from mr.model.deliveries import Delivery, parse_target
from mr.model.entities import Request, Workflow, decode
from mr.notify import facts, mails
from mr.notify.facts import Explain, Why
from mr.outgoing import http, signing
from mr.outgoing.guard import Guard
from mr.outgoing.mail import Mail
from mr.outgoing.settings import guard, mailer

log = logging.getLogger(__name__)

USER_AGENT = f"JobX/{__version__}"


class Notifier:
    """Delivers what is owed of the kinds ``notification``, ``message`` and ``handlers``. For many threads."""

    def __init__(self, config: Config, store: Store, explain: Explain) -> None:
        self._config, self._store, self._explain = config, store, explain
        self._templates = mails.Templates(config.email_templates)

    def notify(self, delivery: Delivery) -> None:
        """Returns once whom it is for has taken it. Every try tells the same, under the same ID.

        :raises DeliveryFailed: it was not taken; final, where it never will be.
        :raises StoreUnavailable: what is to be told cannot be read now.
        """
        try:
            if delivery.target.startswith("mailto:"):
                self._mail(delivery)
            else:
                self._post(delivery)
        except ForbiddenURL as error:
            raise DeliveryFailed(str(error), is_final=True) from error
        except InvalidInput as error:
            # A setting, or what is stored of the workflow, can be corrected in time.
            raise DeliveryFailed(str(error), spares_place=True) from error

    def _post(self, delivery: Delivery) -> None:
        told, _ = self._facts(delivery)
        body = webhook(delivery, told)
        signers = secrets.of_workflow(self._store, delivery.workflow_name)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            **signing.signed(signers, delivery.delivery_id, int(time.time()), body),
        }
        http.post(delivery.target, body, headers, self._guard(delivery.workflow_name))

    def _mail(self, delivery: Delivery) -> None:
        sender = mailer(self._config)
        to = [delivery.target.removeprefix("mailto:")]
        try:
            sender.check(to)
        except InvalidInput as error:
            raise DeliveryFailed(str(error), is_final=True) from error
        told, why = self._facts(delivery)
        name = delivery.event.rpartition(".")[2] if delivery.kind == "notification" else delivery.kind
        rest = {"event": delivery.event, "delivery_id": delivery.delivery_id, "traceback": facts.traceback_of(why)}
        mail = self._templates.render(name, {**told, **rest})
        headers = {"X-WORKFLOW-NAME": delivery.workflow_name}
        if delivery.request_id:
            headers["X-REQUEST-ID"] = delivery.request_id
        sender.send(Mail(to, mail.subject, mail.text, mail.html, headers=headers, delivery_id=delivery.delivery_id))

    def _guard(self, workflow_name: str) -> Guard:
        key = keys.workflow(workflow_name)
        [entry] = self._store.get([key])
        allow = [] if entry is None else decode(Workflow, key, entry.value).outgoing_allow
        return guard(self._config, allow)

    def _facts(self, delivery: Delivery) -> tuple[dict[str, Any], Why | None]:
        if delivery.kind == "handlers":
            return facts.of_handlers(delivery), None
        request = self._request(delivery)
        if delivery.kind == "message":
            return facts.of_message(delivery, request, self._config.public_url), None
        why = self._why(request)
        return facts.of_request(delivery, request, why, self._config.public_url), why

    def _why(self, request: Request | None) -> Why | None:
        if request is None or request.state != "failed":
            return None
        try:
            return self._explain(self._store, request)
        except CorruptRecord as error:
            # That it failed is told all the same.
            log.warning("Why the request %s failed cannot be told: %s", request.request_id, error)
            return None

    def _request(self, delivery: Delivery) -> Request | None:
        key = keys.request(delivery.workflow_name, delivery.request_id or "")
        [entry] = self._store.get([key])
        request = None if entry is None else decode(Request, key, entry.value)
        return None if request is None or request.state == "expiring" else request


def webhook(delivery: Delivery, told: dict[str, Any]) -> bytes:
    """The body: at most 64 KiB, since every fact is bounded; the same for every try."""
    timestamp = told.get("ended_timestamp") or told["timestamp"]
    return msgspec.json.encode({"type": delivery.event, "timestamp": timestamp, "data": told})


def check(config: Config, targets: Iterable[str], outgoing_allow: Sequence[str] = ()) -> None:
    """Whether this platform will tell these targets, as far as can be said without asking anybody.

    ``outgoing_allow`` is the workflow's.

    :raises InvalidInput: one of them it never will; the message says why.
    """
    urls = [parse_target(text).url for text in targets]
    try:
        addresses = [url.removeprefix("mailto:") for url in urls if url.startswith("mailto:")]
        if addresses:
            mailer(config).check(addresses)
        others = [url for url in urls if not url.startswith("mailto:")]
        if others:
            let_out = guard(config, outgoing_allow)
            for url in others:
                let_out.check_form(url)
    except InvalidInput as error:
        error.parameter = "notify"
        raise


def examine(config: Config) -> list[Finding]:
    """What is wrong with what has to do with telling others; nothing where it is not used. Asks no server."""
    found = []
    try:
        Guard(config.outgoing_allow)
    except InvalidInput as error:
        found.append(Finding("problem", "notifications", str(error), "Correct MR_OUTGOING_ALLOW."))
    if config.email_smtp_hostname:
        try:
            mailer(config)
        except InvalidInput as error:
            found.append(Finding("problem", "notifications", str(error), "Correct the settings MR_EMAIL_…."))
        else:
            text = f"Mail goes out by {config.email_smtp_hostname}, from {config.email_smtp_from_email}."
            found.append(Finding("ok", "notifications", text))
    return [*found, *mails.examine(config.email_templates)]
