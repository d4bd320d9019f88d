"""Mails from templates: those that come with JobX, and those of a directory, which replace them by name."""

from __future__ import annotations

import difflib
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import BaseLoader, ChoiceLoader, FileSystemLoader, StrictUndefined, TemplateSyntaxError, select_autoescape
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mr.errors import DeliveryFailed
from mr.findings import Finding, counted
from mr.notify import samples

OWN = Path(__file__).parent / "templates"

MAX_SUBJECT_CHARS = 120

_SUFFIX = ".j2"


class Rendered(NamedTuple):
    subject: str
    text: str
    html: str


class Templates:
    """``NAME.subject.j2``, ``NAME.text.j2`` and ``NAME.html.j2`` for each kind of mail, see :data:`samples.EVENTS`.

    A template that was changed is read again.
    """

    def __init__(self, directory: str = "") -> None:
        loaders: list[BaseLoader] = [FileSystemLoader(path) for path in ([directory] if directory else [])]
        self._jinja = ImmutableSandboxedEnvironment(
            loader=ChoiceLoader([*loaders, FileSystemLoader(OWN)]),
            undefined=StrictUndefined,
            autoescape=select_autoescape([f"html{_SUFFIX}"], default=False),
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._jinja.filters |= {"moment": _moment, "took": _took, "quoted": _quoted}

    def render(self, name: str, facts: dict[str, Any]) -> Rendered:
        """
        :raises DeliveryFailed: a template cannot be used; the message names it, and the line. Not final: somebody may
            mend it in time.
        """
        subject, text, html = (self._render(f"{name}.{part}{_SUFFIX}", facts) for part in ("subject", "text", "html"))
        lines = [line.rstrip() for line in text.strip("\n").splitlines()]
        return Rendered(_one_line(subject), "\n".join(lines) + "\n", html)

    def _render(self, name: str, facts: dict[str, Any]) -> str:
        try:
            return self._jinja.get_template(name).render(facts)
        except Exception as error:
            # A template is others' code, in which anything may go wrong.
            problem = f"{type(error).__name__}: {error}"
            what = f"The mail's template {_place_of(name, error)} cannot be used: {problem}"
            raise DeliveryFailed(what, spares_place=True) from error


def examine(directory: str) -> list[Finding]:
    """What is wrong with a directory of templates: each mail that there is is made once."""
    if not directory:
        return []
    if not Path(directory).is_dir():
        text = f"MR_EMAIL_TEMPLATES is {directory!r}, which is no directory: mails are those that come with JobX."
        return [Finding("warning", "notifications", text, "Make it, or unset the setting.")]
    try:
        given = sorted(path.name for path in Path(directory).iterdir() if path.name.endswith(_SUFFIX))
    except OSError as error:
        text = f"The templates in {directory} cannot be read: {error.strerror}."
        return [Finding("problem", "notifications", text, "Let the user that JobX runs as read them.")]
    known = sorted(path.name for path in OWN.iterdir())
    found = []
    for name in given:
        nearest = difflib.get_close_matches(name, known, n=1)
        # What others include may have any name.
        if name not in known and nearest:
            text = f"{directory}/{name} replaces no template; is it meant to be {nearest[0]}?"
            found.append(Finding("warning", "notifications", text, "Rename it, if it is."))
    problems = set()
    templates = Templates(directory)
    for name, facts in samples.all_of_them():
        try:
            templates.render(name, facts)
        except DeliveryFailed as error:
            problems.add(str(error))
    advice = "Correct it: until then these mails wait, and those that wait for too long are given up."
    found += [Finding("problem", "notifications", problem, advice) for problem in sorted(problems)]
    if not found:
        replaced = counted(len(given), "template")
        found.append(Finding("ok", "notifications", f"{replaced} in {directory}, and every mail can be made."))
    return found


def _place_of(name: str, error: Exception) -> str:
    """The file, and the line in it, that an error has to do with."""
    if isinstance(error, TemplateSyntaxError):
        return f"{error.filename or error.name or name}, line {error.lineno},"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(_SUFFIX)]
    return f"{frames[-1].filename}, line {frames[-1].lineno}," if frames else name


def _one_line(text: str) -> str:
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= MAX_SUBJECT_CHARS else f"{line[: MAX_SUBJECT_CHARS - 1]}…"


# --- filters -----------------------------------------------------------------------------------------------------


def _moment(iso: str) -> str:
    """ISO 8601 as people read it."""
    return f"{iso[:10]} {iso[11:19]} UTC"


def _took(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{timedelta(seconds=round(seconds))} h"


def _quoted(text: str, indent: str = "    ") -> str:
    """Every line indented."""
    return "\n".join(f"{indent}{line}" for line in text.splitlines())
