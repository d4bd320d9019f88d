"""Mail, over SMTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Security = Literal["starttls", "tls", "none"]
SECURITIES: tuple[Security, ...] = ("starttls", "tls", "none")
DEFAULT_PORTS: dict[Security, int] = {"starttls": 587, "tls": 465, "none": 25}


class Attachment(NamedTuple):
    name: str
    content: bytes
    media_type: str = "application/octet-stream"


class Mail(NamedTuple):
    """``html`` is an alternative to the text. ``delivery_id`` makes the Message-ID, the same each time it is sent."""

    to: Sequence[str]
    subject: str
    text: str
    html: str = ""
    attachments: Sequence[Attachment] = ()
    headers: Mapping[str, str] = {}
    delivery_id: str = ""


class Mailer:
    """Hands mail to an SMTP server, over a connection each.

    ``security`` is never less than asked for: a server that has no STARTTLS gets no mail. ``allow`` names addresses and
    ``@domains`` that mail may go to; empty, all. ``ca`` is a file of certificates to trust instead of the system's.

    :raises InvalidInput: the sender or an entry of ``allow`` is not what it must be.
    """

    def __init__(
        self,
        hostname: str,
        port: int,
        security: Security,
        user: str,
        password: str,
        sender: str,
        allow: Sequence[str] = (),
        *,
        ca: str = "",
        seconds: float = 30.0,
    ) -> None:
        raise NotImplementedError

    def check(self, to: Sequence[str]) -> None:
        """:raises InvalidInput: an address is none, or not on the allow-list."""
        raise NotImplementedError

    def send(self, mail: Mail) -> None:
        """Returns once the server has taken the mail for every recipient. Takes ``seconds`` at most.

        :raises DeliveryFailed: it did not; final, where the server or the mail itself says that it never will.
        """
        raise NotImplementedError
