"""TLS certificates for tests, made with openssl."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from servers import Unavailable

DAYS = "30"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout")
# A server of a cluster is a client of others, and etcd's gateway is one of itself.
_SERVER = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
_CLIENT = "extendedKeyUsage=clientAuth\n"


class Pair(NamedTuple):
    cert: Path
    key: Path


class Authority:
    """Signs certificates, each made once, into its directory."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ca = self.directory / "ca.pem"
        self._key = self.directory / "ca-key.pem"
        if not self.ca.exists():
            # Pythons from 3.13 on want an authority to say that it may sign.
            usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
            subject = ["-subj", "/CN=JobX test authority"]
            _openssl("req", "-x509", *_NEW_KEY, self._key, "-days", DAYS, *subject, *usage, "-out", self.ca)

    def server(self, name: str = "server") -> Pair:
        """Valid for localhost and 127.0.0.1; without a common name, which etcd would take for a user's."""
        return self._pair(name, f"/O={name}", _SERVER)

    def client(self, name: str) -> Pair:
        """The name is the common name, which etcd can take for a user's."""
        return self._pair(f"client-{name}", f"/CN={name}", _CLIENT)

    def _pair(self, stem: str, subject: str, extensions: str) -> Pair:
        pair = Pair(self.directory / f"{stem}.pem", self.directory / f"{stem}-key.pem")
        if not pair.cert.exists():
            with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
                request, wanted = Path(scratch, "request.pem"), Path(scratch, "extensions")
                wanted.write_text(f"{extensions}subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
                _openssl("req", *_NEW_KEY, pair.key, "-subj", subject, "-out", request)
                signed_by: list[str | Path] = ["-CA", self.ca, "-CAkey", self._key, "-CAcreateserial"]
                _openssl(
                    "x509", "-req", "-in", request, *signed_by, "-extfile", wanted, "-days", DAYS, "-out", pair.cert
                )
        return pair


def _openssl(*arguments: str | Path) -> None:
    if shutil.which("openssl") is None:
        raise Unavailable("Certificates for tests are made with openssl, which is not installed")
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
