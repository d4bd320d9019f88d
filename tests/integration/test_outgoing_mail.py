"""Mail, against a real SMTP server: in the clear, over TLS and after STARTTLS, with and without a login."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from outgoing_harness import LONG_S, Server
from servers.certificates import Authority
from servers.mail import MailServer

from mr.errors import DeliveryFailed, InvalidInput
from mr.outgoing.mail import SECURITIES, Attachment, Mail, Mailer, Security

SENDER = "JobX <jobx@example.com>"

Opener = Callable[..., MailServer]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def start(authority: Authority) -> Iterator[Opener]:
    started: list[MailServer] = []

    def start_one(security: Security = "none", **options: str) -> MailServer:
        certificate = None if security == "none" else authority.server()
        started.append(MailServer(security, certificate, **options).start())
        return started[-1]

    yield start_one
    for server in started:
        server.stop()


@pytest.fixture
def server(start: Opener) -> MailServer:
    return start()


def mailer(server: MailServer, authority: Authority | None = None, **options: Any) -> Mailer:
    given: dict[str, Any] = {
        "hostname": "localhost",
        "security": server.security,
        "user": "",
        "password": "",
        "sender": SENDER,
    }
    given |= {"ca": str(authority.ca) if authority else "", "seconds": LONG_S, **options}
    return Mailer(port=server.port, **given)


def failure(mailer: Mailer, mail: Mail) -> DeliveryFailed:
    with pytest.raises(DeliveryFailed) as failed:
        mailer.send(mail)
    return failed.value


NOTE = Mail(["a@example.com"], "A subject", "A text.")


# --- how it gets there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["", "jobx"])
@pytest.mark.parametrize("security", SECURITIES)
def test_mail_arrives(start: Opener, authority: Authority, security: Security, user: str) -> None:
    server = start(security, user=user, password="secret")
    mailer(server, authority, user=user, password="secret").send(NOTE)
    [mail] = server.received
    assert (mail.sender, mail.recipients, mail.user) == ("jobx@example.com", ["a@example.com"], user)
    assert mail.is_encrypted is (security != "none")
    assert mail.message["Subject"] == "A subject"
    assert mail.message.get_content() == "A text.\r\n"


@pytest.mark.parametrize("security", SECURITIES)
def test_a_wrong_password_is_told_and_not_the_end(start: Opener, authority: Authority, security: Security) -> None:
    server = start(security, user="jobx", password="secret")
    told = failure(mailer(server, authority, user="jobx", password="wrong"), NOTE)
    assert not told.is_final
    assert f"localhost:{server.port} did not take the mail: it refuses the login: 535" in str(told)
    assert "wrong" not in str(told)
    told = failure(mailer(server, authority), NOTE)
    assert not told.is_final
    assert "530 5.7.0 Authentication required" in str(told)
    assert server.received == []


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_certificate_that_is_not_right_gets_no_mail(
    start: Opener, authority: Authority, tmp_path: Path, security: Security, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def named(host: Any, *arguments: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host == "mail.example.com" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", named)
    server = start(security)
    for case in (
        mailer(server),
        mailer(server, Authority(tmp_path)),
        mailer(server, authority, hostname="mail.example.com"),
    ):
        told = failure(case, NOTE)
        assert not told.is_final
        assert "its certificate is not accepted" in str(told)
    assert server.received == []
    mailer(server, authority, hostname="127.0.0.1").send(NOTE)
    assert len(server.received) == 1


def test_without_starttls_nothing_is_sent_and_no_password_told(start: Opener, authority: Authority) -> None:
    server = start("none", user="jobx", password="secret")
    told = failure(mailer(server, authority, security="starttls", user="jobx", password="secret"), NOTE)
    assert "does not offer STARTTLS" in str(told)
    assert not told.is_final
    assert server.received == []


def test_modes_that_do_not_fit_are_told(start: Opener, authority: Authority) -> None:
    assert "TLS" in str(failure(mailer(start("none"), authority, security="tls"), NOTE))
    assert "530" in str(failure(mailer(start("starttls"), authority, security="none"), NOTE))


def test_a_server_that_is_down_gets_it_later(server: MailServer) -> None:
    server.stop()
    told = failure(mailer(server), NOTE)
    assert "nothing takes connections there" in str(told)
    assert not told.is_final
    server.start()
    mailer(server).send(NOTE)
    assert len(server.received) == 1


# --- what the server says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "answer", "is_final"),
    [
        ("a@example.com", "550 5.1.1 no such user", True),
        ("a@example.com", "450 4.2.1 greylisted", False),
        ("a@example.com", "421 4.3.2 closing", False),
        ("DATA", "554 5.7.1 spam", True),
        ("DATA", "451 4.3.0 try again", False),
        ("MAIL", "552 5.3.4 too large", True),
        ("MAIL", "550 5.7.1 not your address", False),
        ("MAIL", "451 4.3.0 try again", False),
    ],
)
def test_refusals_are_final_where_they_are_of_the_mail(
    server: MailServer, refused: str, answer: str, is_final: bool
) -> None:
    server.refuse[refused] = answer
    told = failure(mailer(server), NOTE)
    assert told.is_final is is_final
    assert answer in str(told)
    assert server.received == []
    del server.refuse[refused]
    mailer(server).send(NOTE)
    assert len(server.received) == 1


def test_a_recipient_refused_for_good_keeps_nobody_else_from_it(server: MailServer) -> None:
    server.refuse["b@example.com"] = "550 no such user"
    told = failure(mailer(server), NOTE._replace(to=["a@example.com", "b@example.com", "c@example.com"]))
    assert told.is_final
    assert "b@example.com: 550 no such user (the others were sent it)" in str(told)
    assert [mail.recipients for mail in server.received] == [["a@example.com", "c@example.com"]]


def test_while_a_recipient_is_refused_for_now_nobody_gets_it_twice(server: MailServer) -> None:
    server.refuse |= {"b@example.com": "450 later", "c@example.com": "550 no such user"}
    told = failure(mailer(server), NOTE._replace(to=["a@example.com", "b@example.com", "c@example.com"]))
    assert not told.is_final
    assert "b@example.com: 450 later" in str(told)
    assert server.received == []


def test_what_a_server_says_is_told_in_one_plain_line(server: MailServer) -> None:
    server.refuse["DATA"] = "554-no\r\n554 \x1b[31m" + "!" * 400
    told = str(failure(mailer(server), NOTE))
    assert "554 no [31m!!!" in told
    assert told.isprintable() and len(told) < 500


# --- in time --------------------------------------------------------------------------------------------------------


@pytest.fixture
def talk() -> Iterator[Callable[[bytes, bytes], Server]]:
    """A server that says something, and then something else again and again."""
    opened: list[Server] = []

    def open_one(first: bytes, again: bytes) -> Server:
        def converse(connection: socket.socket) -> None:
            connection.sendall(first)
            connection.settimeout(0.02)
            deadline = time.monotonic() + LONG_S
            while time.monotonic() < deadline:
                with suppress(TimeoutError):
                    if not connection.recv(1024):
                        raise ConnectionError("the client is gone")
                connection.sendall(again)

        opened.append(Server(converse))
        return opened[-1]

    yield open_one
    for server in opened:
        server.close()


@pytest.mark.parametrize(
    ("first", "again"), [(b"", b""), (b"220", b"-a"), (b"", b"220-a\r\n"), (b"220 a\r\n", b"250-a\r\n")]
)
@pytest.mark.parametrize("security", SECURITIES)
def test_a_server_that_holds_on_is_left(
    talk: Callable[[bytes, bytes], Server], security: Security, first: bytes, again: bytes
) -> None:
    server = talk(first, again)
    told = server.holding(
        lambda seconds: failure(Mailer("127.0.0.1", server.port, security, "", "", SENDER, seconds=seconds), NOTE)
    )
    assert not told.is_final
    assert "it took longer than" in str(told) or (security == "tls" and "TLS" in str(told))
    assert server.was_cut.wait(LONG_S)


def test_what_is_no_mail_server_is_told(talk: Callable[[bytes, bytes], Server]) -> None:
    for said, why in ((b"HTTP/1.1 400 Bad Request\r\n", "-1"), (b"554 go away\r\n", "554 go away")):
        told = failure(Mailer("127.0.0.1", talk(said, b"\r\n").port, "none", "", "", SENDER, seconds=LONG_S), NOTE)
        assert not told.is_final
        assert why in str(told)


# --- what is in it --------------------------------------------------------------------------------------------------


def test_a_mail_says_what_it_is(server: MailServer) -> None:
    text = "Grüße\r\n.\r\n..\nFrom me\n" + "long " * 500 + "\nNUL \0 and \ud800\n"
    mail = Mail(
        ["Zoë Q. <a@example.com>", "b@bücher.example"],
        "Ein Gruß 👨‍👩‍👧 " + "lang " * 40,
        text,
        "<p>Grüße</p>",
        [Attachment("Ergebnis é.json", b'{"a":1}\n', "application/json"), Attachment("raw", bytes(range(256)))],
        {"X-JobX-Workflow": "wörds"},
        "r1_0_1",
    )
    mailer(server).send(mail)
    [received] = server.received
    assert received.recipients == ["a@example.com", "b@xn--bcher-kva.example"]
    assert received.raw.isascii() and max(map(len, received.raw.split(b"\r\n"))) <= 998
    message = received.message
    assert message["From"] == SENDER
    assert message["To"] == '"Zoë Q." <a@example.com>, b@xn--bcher-kva.example'
    assert message["Subject"] == mail.subject
    assert message["Message-ID"] == "<r1_0_1@example.com>"
    assert abs(message["Date"].datetime.timestamp() - time.time()) < 3600
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["X-JobX-Workflow"] == "wörds"
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None and html is not None
    assert plain.get_content().splitlines() == text.replace("\0", "\ufffd").replace("\ud800", "?").splitlines()
    assert html.get_content().strip() == "<p>Grüße</p>"
    first, second = message.iter_attachments()
    assert (first.get_filename(), first.get_content_type()) == ("Ergebnis é.json", "application/json")
    assert (first.get_content(), second.get_content()) == (b'{"a":1}\n', bytes(range(256)))


def test_its_id_is_the_deliverys_each_time(server: MailServer) -> None:
    for delivery_id in ("r1_0_1", "r1_0_1", "odd id\r\n", "odd id\r\n", "", ""):
        mailer(server).send(NOTE._replace(delivery_id=delivery_id))
    first, again, odd, odd_again, new, other_new = [mail.message["Message-ID"] for mail in server.received]
    assert first == again == "<r1_0_1@example.com>"
    assert odd == odd_again and odd.endswith("@example.com>")
    assert len({first, odd, new, other_new}) == 4


def test_addresses_that_are_not_ascii_need_a_server_that_takes_them(
    server: MailServer, talk: Callable[[bytes, bytes], Server]
) -> None:
    mailer(server).send(NOTE._replace(to=["zoë@bücher.example"]))
    assert server.received[0].recipients == ["zoë@xn--bcher-kva.example"]
    assert server.received[0].message["To"] == "zoë@xn--bcher-kva.example"
    old = talk(b"220 old\r\n", b"250 old\r\n")
    told = failure(Mailer("127.0.0.1", old.port, "none", "", "", SENDER), NOTE._replace(to=["zoë@example.com"]))
    assert told.is_final
    assert "SMTPUTF8" in str(told)


BREAKS = ["\r\n", "\n", "\r", "\0", "\x1b", "\x85", "\u2028", "\u2029", "\x0b", "\x0c"]


@pytest.mark.parametrize("broken", BREAKS, ids=ascii)
def test_headers_cannot_be_injected(server: MailServer, broken: str) -> None:
    text = f"a{broken}Bcc: victim@example.com"
    for mail in (
        NOTE._replace(subject=text),
        NOTE._replace(to=[f"a@example.com{broken}Bcc: victim@example.com"]),
        NOTE._replace(to=[f"{text} <a@example.com>"]),
        NOTE._replace(to=[f"a@example.com>{broken}RCPT TO:<victim@example.com"]),
        NOTE._replace(headers={"X-A": text}),
        NOTE._replace(headers={f"X-A{broken}Bcc": "victim@example.com"}),
        NOTE._replace(attachments=[Attachment(text, b"")]),
        NOTE._replace(attachments=[Attachment("a", b"", f"text/plain{broken}Bcc: victim@example.com")]),
    ):
        assert failure(mailer(server), mail).is_final
    with pytest.raises(InvalidInput):
        mailer(server, sender=f"{text} <jobx@example.com>")
    assert server.received == []


def test_what_looks_like_headers_in_a_name_stays_a_name(server: MailServer) -> None:
    name = 'A "B" <, Bcc: x@example.com'.replace("<", "(")
    mailer(server).send(NOTE._replace(to=[f"{name} <a@example.com>"]))
    [received] = server.received
    assert received.recipients == ["a@example.com"]
    [address] = received.message["To"].addresses
    assert (address.display_name, address.addr_spec) == (name, "a@example.com")
    assert received.message["Bcc"] is None


OWN = ["From", "to", "CC", "Bcc", "Sender", "Reply-To", "Subject", "Date", "Message-ID", "Content-Type", "MIME-Version"]


@pytest.mark.parametrize("name", [*OWN, "", "A B", "A:"])
def test_headers_that_are_not_the_callers_are_refused(server: MailServer, name: str) -> None:
    assert failure(mailer(server), NOTE._replace(headers={name: "a@example.com"})).is_final


@pytest.mark.parametrize(
    "address",
    [
        "",
        "a",
        "@example.com",
        "a@",
        "a@b@example.com",
        "a b@example.com",
        "a@exa mple.com",
        ".a@example.com",
        "a.@example.com",
        "a..b@example.com",
        "a@-example.com",
        "a@example..com",
        "a@[127.0.0.1]",
        '"a b"@example.com',
        "a@example.com, b@example.com",
        "<a@example.com",
        "a@example.com> <b@example.com>",
        "a" * 65 + "@example.com",
        "a@" + "b." * 130 + "com",
        "a@example.com\n",
        "mailto:a@example.com",
        "a@xn--\udcff.com",
        "a\ud800@example.com",
    ],
)
def test_what_is_no_address_gets_nothing(server: MailServer, address: str) -> None:
    with pytest.raises(InvalidInput):
        mailer(server).check([address])
    assert failure(mailer(server), NOTE._replace(to=["a@example.com", address])).is_final
    assert server.received == []


def test_mail_needs_somebody(server: MailServer) -> None:
    assert failure(mailer(server), NOTE._replace(to=[])).is_final


def test_recipients_are_those_of_the_allow_list(server: MailServer) -> None:
    limited = mailer(server, allow=["A@example.com", "@Team.example", "@bücher.example"])
    for to in ("a@example.com", "A@Example.com", "Name <a@example.com>", "any@team.example", "x@xn--bcher-kva.example"):
        limited.check([to])
        limited.send(NOTE._replace(to=[to]))
    assert len(server.received) == 5
    for to in (
        "b@example.com",
        "a@sub.team.example",
        "a@team.example.com",
        "a@example.com@other.example",
        "team.example@x.org",
    ):
        told = failure(limited, NOTE._replace(to=["a@example.com", to]))
        assert told.is_final
        with pytest.raises(InvalidInput):
            limited.check([to])
    assert "Mail to b@example.com is not allowed" in str(failure(limited, NOTE._replace(to=["b@example.com"])))
    assert len(server.received) == 5


@pytest.mark.parametrize("entry", ["", "@", "example.com", "@exa mple.com", "a@", "*@example.com@"])
def test_an_allow_list_that_is_none_is_refused(server: MailServer, entry: str) -> None:
    with pytest.raises(InvalidInput):
        mailer(server, allow=[entry])


def test_a_sender_or_login_that_cannot_be_is_refused(server: MailServer) -> None:
    for options in ({"sender": "JobX"}, {"sender": ""}, {"user": "é"}, {"password": "ß"}):
        with pytest.raises(InvalidInput):
            mailer(server, **options)
