"""What goes out as the platform's settings say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from mr.config import Config
from mr.errors import InvalidInput
from mr.outgoing.guard import Guard
from mr.outgoing.mail import DEFAULT_PORTS, Mailer, Security
from mr.urls import address


def guard(config: Config, allow: Sequence[str] = ()) -> Guard:
    """What the platform lets out, and beside it ``allow``, which is a workflow's.

    :raises InvalidInput: an entry of the two is none.
    """
    return Guard([*config.outgoing_allow, *allow])


def mailer(config: Config, *, seconds: float = 30.0) -> Mailer:
    """One that takes so many seconds for a mail, at most.

    :raises InvalidInput: this platform sends no mail, or a setting that has to do with mail is wrong.
    """
    if not config.email_smtp_hostname:
        raise InvalidInput("This platform sends no mail: MR_EMAIL_SMTP_HOSTNAME is not set.", "MR_EMAIL_SMTP_HOSTNAME")
    if not config.email_smtp_from_email:
        raise InvalidInput(
            "This platform sends no mail: MR_EMAIL_SMTP_FROM_EMAIL, which says from whom, is not set.",
            "MR_EMAIL_SMTP_FROM_EMAIL",
        )
    security = cast(Security, config.email_smtp_security)
    host, port = address(config.email_smtp_hostname, DEFAULT_PORTS[security])
    return Mailer(
        host,
        port,
        security,
        config.email_smtp_user,
        config.email_smtp_password,
        config.email_smtp_from_email,
        config.email_allow,
        ca=config.email_smtp_ca,
        seconds=seconds,
    )
