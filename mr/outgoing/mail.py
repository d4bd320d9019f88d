"""Mail, over SMTP."""

from __future__ import annotations

import hashlib
import re
import smtplib
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, localtime, make_msgid
from socket import socket
from typing import Literal, NamedTuple, cast
from unicodedata import category

import idna

from mr.errors import DeliveryFailed, InvalidInput
from mr.outgoing.connection import Deadline, Line, client_context, connect, look_up, reason

Security = Literal["starttls", "tls", "none"]
SECURITIES: tuple[Security, ...] = ("starttls", "tls", "none")
DEFAULT_PORTS: dict[Security, int] = {"starttls": 587, "tls": 465, "none": 25}

MAX_SUBJECT_CHARS = 500

_LOCAL = re.compile(
    r"[^\s\x00-\x20\x7f-\xa0\ud800-\udfff()<>\[\]:;@\\,.\"]+(\.[^\s\x00-\x20\x7f-\xa0\ud800-\udfff()<>\[\]:;@\\,.\"]+)*"
)
_DOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_NAMED = re.compile(r"(?P<name>[^<>]*)<(?P<address>[^<>]*)>")
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,76}")
_MEDIA_TYPE = re.compile(r"([a-z0-9][a-z0-9!#$&^_.+-]*)/([a-z0-9][a-z0-9!#$&^_.+-]*)")
_OWN = frozenset({"from", "to", "cc", "bcc", "sender", "reply-to", "subject", "date", "message-id", "mime-version"})
# Long texts and other alphabets are encoded, so that any server takes them.
_POLICY = SMTP.clone(cte_type="7bit")


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

    :raises InvalidInput: the sender, the login or an entry of ``allow`` is not what it must be.
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
        if not (user + password).isascii():
            raise InvalidInput("The user and password of the mail server have to be ASCII.", "user")
        self._hostname, self._port, self._security = hostname, port, security
        self._user, self._password = user, password
        self._sender = _address(sender)
        self._allow = frozenset(map(_allowed, allow))
        self._ca = ca
        self._seconds = seconds

    def check(self, to: Sequence[str]) -> None:
        """:raises InvalidInput: an address is none, or not on the allow-list."""
        self._recipients(to)

    def send(self, mail: Mail) -> None:
        """Returns once the server has taken the mail for every recipient. Takes ``seconds`` at most.

        Where the server refuses a recipient for now, nobody gets it yet; where for good, the others do.

        :raises DeliveryFailed: it was not taken for everybody; final, where the server says that it never will be, or
            the mail is none that can be sent. What is wrong with connection or login is never final.
        """
        try:
            recipients = self._recipients(mail.to)
            message = _composed(mail, self._sender, recipients)
        except InvalidInput as error:
            raise DeliveryFailed(str(error), is_final=True) from error
        deadline = Deadline(self._seconds)
        try:
            self._hand_over(message, [one.addr_spec for one in recipients], deadline)
        except smtplib.SMTPAuthenticationError as error:
            raise self._failed(f"it refuses the login: {_said(error.smtp_code, error.smtp_error)}") from error
        except smtplib.SMTPResponseException as error:
            is_final = isinstance(error, smtplib.SMTPDataError) and error.smtp_code >= 500
            raise self._failed(_said(error.smtp_code, error.smtp_error), is_final) from error
        except (smtplib.SMTPException, OSError) as error:
            why = f"it took longer than {self._seconds:g} s" if deadline.is_over else reason(error)
            raise self._failed(why) from error

    def _recipients(self, to: Sequence[str]) -> list[Address]:
        if not to:
            raise InvalidInput("A mail needs a recipient.", "to")
        recipients = [_address(text) for text in to]
        for one in recipients:
            if self._allow and not {one.addr_spec.lower(), f"@{one.domain}"} & self._allow:
                raise InvalidInput(
                    f"Mail to {one.addr_spec} is not allowed: neither it nor @{one.domain} is on the list of whom mail "
                    "may go to (MR_EMAIL_ALLOW).",
                    "to",
                )
        return recipients

    def _hand_over(self, message: EmailMessage, recipients: list[str], deadline: Deadline) -> None:
        context = None if self._security == "none" else client_context(self._ca)
        implicit = context if self._security == "tls" else None
        addresses = look_up(self._hostname, self._port, deadline.left())
        with connect(addresses, self._port, deadline, implicit, self._hostname) as line:
            own = line.own_address
            # By its address: a name of this machine would have to be looked up.
            server = smtplib.SMTP(local_hostname=f"[IPv6:{own}]" if ":" in own else f"[{own}]")
            # A line is as much of a socket as is used there.
            server.sock = cast("socket", line)
            code, said = server.getreply()
            if code != 220:
                raise smtplib.SMTPConnectError(code, said)
            server.ehlo_or_helo_if_needed()
            if self._security == "starttls":
                if not server.has_extn("starttls"):
                    raise smtplib.SMTPNotSupportedError("it does not offer STARTTLS, and nothing is sent without")
                server.starttls(
                    context=cast("ssl.SSLContext", _StartTls(cast("ssl.SSLContext", context), self._hostname))
                )
                server.ehlo_or_helo_if_needed()
            if self._user:
                server.login(self._user, self._password)
            self._say(server, message, recipients)

    def _say(self, server: smtplib.SMTP, message: EmailMessage, recipients: list[str]) -> None:
        is_utf8 = not all(one.isascii() for one in [self._sender.addr_spec, *recipients])
        if is_utf8 and not server.has_extn("smtputf8"):
            raise self._failed("it takes no addresses that are not ASCII (SMTPUTF8)", is_final=True)
        code, said = server.mail(self._sender.addr_spec, ["SMTPUTF8", "BODY=8BITMIME"] if is_utf8 else [])
        if code != 250:
            # 552: too large. Another sender, or a login, is for the operator to give.
            raise self._failed(_said(code, said), is_final=code == 552)
        refused = {False: "", True: ""}
        taken = 0
        for recipient in recipients:
            code, said = server.rcpt(recipient)
            if 200 <= code < 300:
                taken += 1
            else:
                refused[code >= 500] += f"; {recipient}: {_said(code, said)}"
        for_now, for_good = refused[False][2:], refused[True][2:]
        if for_now:
            raise self._failed(for_now)
        if not taken:
            raise self._failed(for_good, is_final=True)
        code, said = server.data(message.as_bytes(policy=_POLICY.clone(utf8=is_utf8)))
        if code != 250:
            raise smtplib.SMTPDataError(code, said)
        with suppress(smtplib.SMTPException, OSError):
            server.quit()
        if for_good:
            raise self._failed(f"{for_good} (the others were sent it)", is_final=True)

    def _failed(self, why: str, is_final: bool = False) -> DeliveryFailed:
        text = f"The mail server {self._hostname}:{self._port} did not take the mail: {why}"
        return DeliveryFailed(text if text[-1] in ".)" else f"{text}.", is_final)


class _StartTls:
    """As much of a context as `smtplib` uses."""

    def __init__(self, context: ssl.SSLContext, name: str) -> None:
        self._context = context
        self._name = name

    def wrap_socket(self, line: Line, server_hostname: str | None = None) -> Line:
        line.secure(self._context, self._name)
        return line


# --- what a mail is made of -------------------------------------------------------------------------------------------


def _composed(mail: Mail, sender: Address, recipients: list[Address]) -> EmailMessage:
    """
    :raises InvalidInput: something in it would not be what it says.
    """
    message = EmailMessage(policy=_POLICY)
    message["From"] = sender
    message["To"] = recipients
    message["Subject"] = _line("subject", mail.subject)[:MAX_SUBJECT_CHARS]
    message["Date"] = format_datetime(localtime())
    message["Message-ID"] = _message_id(mail.delivery_id, sender.domain)
    # Nobody's absence is answered to a machine.
    for name, value in {"Auto-Submitted": "auto-generated", **mail.headers}.items():
        if not _HEADER.fullmatch(name) or name.lower() in _OWN or name.lower().startswith("content-"):
            raise InvalidInput(f"{name[:80]!r} cannot be a header of a mail that is sent here.", "headers")
        del message[name]
        message[name] = _line(f"header {name}", value)
    message.set_content(_text(mail.text))
    if mail.html:
        message.add_alternative(_text(mail.html), subtype="html")
    for one in mail.attachments:
        read = _MEDIA_TYPE.fullmatch(one.media_type.lower())
        if read is None or read[1] in ("multipart", "message"):
            raise InvalidInput(f"{one.media_type[:80]!r} is no media type for an attachment.", "attachments")
        name = _line("name of an attachment", one.name)
        message.add_attachment(one.content, maintype=read[1], subtype=read[2], filename=name)
    return message


def _message_id(delivery_id: str, domain: str) -> str:
    if not delivery_id:
        return make_msgid(domain=domain)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,200}", delivery_id):
        delivery_id = hashlib.sha256(delivery_id.encode("utf-8", "replace")).hexdigest()
    return f"<{delivery_id}@{domain}>"


def _text(text: str) -> str:
    """With what UTF-8 or mail cannot carry replaced."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _line(what: str, text: str) -> str:
    """What can stand in a header: nothing in it ends the line.

    :raises InvalidInput: something does.
    """
    if any(category(char) in ("Cc", "Zl", "Zp") for char in text):
        raise InvalidInput(f"The {what} of a mail, {text[:80]!r}, has a line break or another control character.")
    return _text(text)


def _address(text: str) -> Address:
    """``local@domain`` or ``Name <local@domain>``; a domain's name in ASCII.

    :raises InvalidInput: it is neither.
    """
    named = _NAMED.fullmatch(text.strip(" "))
    name, plain = (named["name"].strip(' "'), named["address"]) if named else ("", text.strip(" "))
    local, _, domain = plain.rpartition("@")
    if len(plain) > 254 or not 0 < len(local.encode("utf-8", "replace")) <= 64 or not _LOCAL.fullmatch(local):
        raise InvalidInput(f"{text[:80]!r} is no mail address, as name@example.com is.", "address")
    return Address(_line("name in an address", name), local, _domain(domain, text))


def _domain(domain: str, whole: str) -> str:
    try:
        ascii_domain = (domain if domain.isascii() else idna.encode(domain, uts46=True).decode()).lower()
    except (idna.IDNAError, UnicodeError):
        ascii_domain = ""
    if not _DOMAIN.fullmatch(ascii_domain):
        raise InvalidInput(f"{whole[:80]!r} has no domain, as name@example.com has.", "address")
    return ascii_domain


def _allowed(entry: str) -> str:
    """
    :raises InvalidInput: it is neither an address nor ``@domain``.
    """
    return f"@{_domain(entry[1:], entry)}" if entry.startswith("@") else _address(entry).addr_spec.lower()


def _said(code: int, text: bytes | str) -> str:
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    plain = " ".join("".join(char if char.isprintable() else " " for char in words).split())
    return f"{code} {plain[:300]}".rstrip()
