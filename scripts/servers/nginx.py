"""nginx, with a configuration of the caller's."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from pathlib import Path

from servers import binaries
from servers.process import Server, accepts

_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Nginx(Server):
    """Runs in the foreground with the configuration, read anew at each start.

    The file may be a whole nginx.conf or what belongs into its `http` block, as in `sites-enabled`. What the
    configuration leaves open and would lie in the system's directories (logs, temporary files, the process id) is put
    into this one's; relative includes are looked for beside the file, `mime.types` is there always.
    """

    # Killed, it would leave its own processes behind.
    death_signal = signal.SIGTERM

    def __init__(self, directory: Path | str, configuration_path: Path | str) -> None:
        super().__init__("nginx", directory)
        self.configuration_path = Path(configuration_path).absolute()
        if self.configuration_path.parent == self.directory:
            raise ValueError(f"{self.directory} is nginx's own: put {self.configuration_path.name} elsewhere")
        self._written = self.directory / "nginx.conf"
        self._pid_file = self.directory / "nginx.pid"

    def command(self) -> list[str]:
        program = binaries.nginx()
        self._pid_file.unlink(missing_ok=True)
        self._write(program)
        return [str(program), "-p", f"{self.directory}/", "-e", str(self.log_path), "-c", str(self._written)]

    def _write(self, program: Path) -> None:
        """Puts the configuration, and what it includes, where it is read from."""
        text = self.configuration_path.read_text()
        beside = self.configuration_path.parent
        for pattern in re.findall(r"^\s*include\s+([^/;\s][^;\s]*)", text, re.MULTILINE):
            for path in beside.glob(pattern):
                copy = self.directory / path.relative_to(beside)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
        types = next(path for path in (program.parent / "mime.types", Path("/etc/nginx/mime.types")) if path.exists())
        shutil.copy2(types, self.directory / "mime.types")
        self._written.write_text(self._complete(text))

    def _complete(self, text: str) -> str:
        if not re.search(r"^\s*http\s*\{", text, re.MULTILINE):
            text = f"events {{}}\nhttp {{\ninclude mime.types;\n{text}\n}}\n"
        main = {"daemon": "off", "pid": f"{self._pid_file}", "error_log": f"{self.log_path}"}
        if os.geteuid() == 0:
            # Its processes would otherwise not get at sockets in a directory that is only the caller's.
            main["user"] = "root"
        http = {f"{name}_temp_path": f"{self.directory}/{name}" for name in _TEMPORARY}
        http["access_log"] = f"{self.directory}/access.log"
        text = re.sub(r"^(\s*http\s*\{)", lambda found: f"{found[1]}\n{_missing(http, text)}", text, flags=re.MULTILINE)
        return _missing(main, text) + text

    def listens(self) -> list[str]:
        """The addresses of its `listen` directives, as `host:port` or `unix:PATH`."""
        found = re.findall(r"^\s*listen\s+([^\s;]+)", self.configuration_path.read_text(), re.MULTILINE)
        return [each if ":" in each else f"127.0.0.1:{each}" for each in found]

    def is_ready(self) -> bool:
        return self._pid_file.exists() and all(accepts(each) for each in self.listens())

    def reload(self) -> None:
        """Reads the configuration again without dropping a connection."""
        self._write(binaries.nginx())
        self._signal(signal.SIGHUP)

    def kill(self) -> None:
        children = []
        if self.is_running:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        super().kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)


def _missing(directives: dict[str, str], text: str) -> str:
    """Those that the text does not have."""
    absent = (name for name in directives if not re.search(rf"^\s*{name}\s", text, re.MULTILINE))
    return "".join(f"{name} {directives[name]};\n" for name in absent)
