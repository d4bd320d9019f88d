"""An SMTP server in a thread, which keeps what it was given and refuses what it is told to."""

from __future__ import annotations

import asyncio
import email
import email.policy
import ssl
import threading
from collections.abc import Callable
from email.message import EmailMessage
from types import TracebackType
from typing import Literal, NamedTuple, cast

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from servers.certificates import Pair
from servers.process import HOST, START_TIMEOUT_S, Port, wait_until

Security = Literal["starttls", "tls", "none"]


class Received(NamedTuple):
    """``message`` is parsed; ``raw`` as it came."""

    sender: str
    recipients: list[str]
    message: EmailMessage
    raw: bytes
    is_encrypted: bool
    user: str


class MailServer:
    """Takes mail at ``HOST:port``, always the same one, over TLS, after STARTTLS or in the clear.

    With a user, only after that one's login. What it refuses can be set while it runs: ``refuse`` has an answer
    (``"550 no such user"``) for a recipient, or for one of the commands ``MAIL`` and ``DATA``.
    """

    def __init__(
        self, security: Security = "none", certificate: Pair | None = None, *, user: str = "", password: str = ""
    ) -> None:
        self.security = security
        self.user, self.password = user, password
        self.refuse: dict[str, str] = {}
        self.received: list[Received] = []
        self._port = Port()
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate.cert, certificate.key)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def hostname(self) -> str:
        return HOST

    @property
    def port(self) -> int:
        return self._port.number

    @property
    def address(self) -> str:
        return self._port.address

    def start(self) -> MailServer:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready.set,), name="smtp", daemon=True)
        self._thread.start()
        if not ready.wait(START_TIMEOUT_S):
            raise RuntimeError("the SMTP server does not start")
        return self

    def stop(self) -> None:
        """What was received stays."""
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop = self._thread = None

    def wait_for(self, number: int, timeout: float = START_TIMEOUT_S) -> list[Received]:
        """Everything received, once it is that many."""
        wait_until(lambda: len(self.received) >= number, f"{number} mails to arrive", timeout)
        return self.received

    def __enter__(self) -> MailServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, tell: Callable[[], None]) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        implicit = self._context if self.security == "tls" else None
        server = loop.run_until_complete(loop.create_server(self._session, HOST, self.port, ssl=implicit))
        self._loop = loop
        tell()
        try:
            loop.run_forever()
        finally:
            server.close()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _session(self) -> SMTP:
        has_starttls = self.security == "starttls"
        return SMTP(
            _Handler(self),
            hostname="mail.test",
            enable_SMTPUTF8=True,
            tls_context=self._context if has_starttls else None,
            require_starttls=has_starttls,
            authenticator=self._authenticated if self.user else None,
            auth_require_tls=has_starttls,
            loop=asyncio.get_running_loop(),
        )

    def _authenticated(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object
    ) -> AuthResult:
        known = isinstance(data, LoginPassword) and data == LoginPassword(self.user.encode(), self.password.encode())
        return AuthResult(success=known, handled=False, auth_data=self.user)


class _Handler:
    def __init__(self, owner: MailServer) -> None:
        self._owner = owner

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self._owner.user and not session.authenticated:
            return "530 5.7.0 Authentication required"
        envelope.mail_from = address
        return self._owner.refuse.get("MAIL", "250 OK")

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self._owner.refuse:
            return self._owner.refuse[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if "DATA" in self._owner.refuse:
            return self._owner.refuse["DATA"]
        raw = cast("bytes", envelope.original_content)
        message = email.message_from_bytes(raw, policy=email.policy.default)
        assert isinstance(message, EmailMessage) and envelope.mail_from is not None
        is_encrypted = session.ssl is not None or self._owner.security == "tls"
        user = str(session.auth_data or "")
        self._owner.received.append(
            Received(envelope.mail_from, list(envelope.rcpt_tos), message, raw, is_encrypted, user)
        )
        return "250 taken"
