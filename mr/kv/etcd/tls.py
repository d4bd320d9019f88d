"""TLS to etcd: what a URL says about it, and why it does not come about."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from mr.errors import InvalidConfig

_CONNECT_S = 2.0
_VERDICT_S = 1.0
"""How long a server may take to say what it thinks of a client's certificate, which comes after the handshake."""


class Tls(NamedTuple):
    """Paths of PEM files, empty where there is none. Without ``ca`` the authorities that gRPC brings are trusted."""

    ca: str
    cert: str
    key: str

    def check(self) -> None:
        """:raises InvalidConfig: a file cannot be read, or is not what it should be."""
        try:
            self.context()
        except (OSError, ValueError) as error:
            named = ", ".join(f"{name}={path}" for name, path in self._asdict().items() if path)
            raise InvalidConfig(f"TLS to etcd cannot be set up with {named}: {error}.", "MR_KV_URL") from error

    def credentials(self) -> Any:
        """What gRPC takes.

        :raises OSError: a file cannot be read any more.
        """
        ca, key, cert = (Path(path).read_bytes() if path else None for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)

    def problem(self, host: str, port: int) -> str:
        """Why there is no TLS with that server, by a try of Python's own, which tells more; empty if there is."""
        try:
            with (
                socket.create_connection((host, port), timeout=_CONNECT_S) as plain,
                self.context().wrap_socket(plain, server_hostname=host) as secured,
            ):
                secured.settimeout(_VERDICT_S)
                secured.recv(1)
        except TimeoutError:
            return ""
        except ssl.SSLCertVerificationError as error:
            return f"its certificate is not trusted ({error.verify_message}): see ca=… in MR_KV_URL"
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).lower().replace("_", " ")
            if "alert" in reason and self.cert:
                return f"it does not take the certificate {self.cert} ({reason})"
            if "alert" in reason:
                return f"it wants a certificate of its clients ({reason}): give cert=… and key=… in MR_KV_URL"
            return f"it does not speak TLS ({reason}): write etcd:// if it is not meant to"
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    def context(self) -> ssl.SSLContext:
        """What Python takes.

        :raises OSError, ValueError: a file cannot be read, or is not what it should be.
        """
        context = ssl.create_default_context(cafile=self.ca or None)
        if self.cert:
            # Nobody is there to be asked for the password of a key.
            context.load_cert_chain(self.cert, self.key, password=lambda: "")
        return context
