"""A request's page for a browser: one document without anything from elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from jinja2 import Environment

from mr.handlers.tracebacks import shortened
from mr.trace.page import plain
from mr.trace.why import Why, look_of
from mr.web.front import Status
from mr.web.problems import UNKNOWN
from mr.web.waiting import sentence

MESSAGE_CHARACTERS = 4000

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{% if not request.is_done %}<meta http-equiv="refresh" content="2">{% endif %}
<title>{{ request.state }}: {{ request.workflow_name }}/{{ request.job_name }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; } h3 { font-size: .95rem; color: #666; }
p { margin: .4rem 0; } .path { color: #666; } .message { color: #c0392b; white-space: pre-wrap; }
.place code { background: #f5f5f5; padding: .1rem .4rem; margin-left: 1rem; }
th { text-align: left; font-weight: normal; color: #666; padding-right: 2rem; vertical-align: top; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: 13px; line-height: 1.35; }
.state { padding: .1rem .5rem; border-radius: .3rem; color: #fff; background: #666; }
.waiting { border-left: .3rem solid #b7791f; padding: .3rem .8rem; background: #fdf6e3; }
.done { background: #1a7f37; } .failed { background: #c0392b; } .running { background: #2468b3; }
</style>
</head>
<body>
<h1>{{ request.workflow_name }}/{{ request.job_name }}
<span class="state {{ request.state }}">{{ request.state }}</span></h1>
<table>
{% for name, value in facts %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
{% if waiting %}
<p class="waiting">{{ waiting }}</p>
{% endif %}
{% if failure %}
<h2>{{ failure.exception_type }}{% if why.handler_name %} in {{ why.handler_name }}{% endif %}</h2>
<p class="path">{% for stop in why.path %}{{ stop }}{{ " → " if not loop.last }}{% endfor %}</p>
<p class="message">{{ message }}</p>
{% if why.place %}
<p class="place"><b>{{ why.place }}</b>
{% if why.place.source_line %}<code>{{ why.place.source_line }}</code>{% endif %}</p>
{% endif %}
{% if why.summary %}
<p>So its parent failed: {{ summary }}</p>
{% endif %}
<table>
{% for name, value in circumstances %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
{% for name, text in printed %}<h3>{{ name }}</h3>
<pre>{{ text }}</pre>
{% endfor %}
{% endif %}
<h2>Invocations</h2>
<pre>{{ tree }}</pre>
<p>{% for name, url in links.items() %}<a href="{{ url }}">{{ name }}</a>{{ " · " if not loop.last }}{% endfor %}</p>
</body>
</html>
"""

_template = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)


def render(status: Status, tree: str, links: dict[str, str]) -> str:
    """``tree`` is text, ``links`` are URLs by what to call them."""
    why = status.why
    failure = None if why is None else why.failure or UNKNOWN
    return _template.render(
        request=status.request,
        facts=list(_facts(status)),
        waiting=sentence(status.request.workflow_name, status.waiting_for),
        why=why,
        failure=failure,
        message="" if failure is None else shortened(failure.exception_message, MESSAGE_CHARACTERS),
        summary="" if why is None else shortened(why.summary, MESSAGE_CHARACTERS),
        circumstances=[] if why is None else list(_circumstances(why)),
        printed=[] if why is None else list(_printed(why)),
        tree=tree,
        links=links,
    )


def _circumstances(why: Why) -> Iterator[tuple[str, str]]:
    if why.key is not None:
        yield "key", why.key
    if why.failure is not None:
        yield "attempt", f"{why.attempt} of {why.attempts}" if why.attempts else str(why.attempt)
    if why.worker:
        yield "worker", why.worker
    if why.invocation_id is not None:
        yield "invocation", why.invocation_id
    yield "command", look_of(why.request.request_id)


def _printed(why: Why) -> Iterator[tuple[str, str]]:
    texts = {
        "traceback": "" if why.failure is None else why.failure.traceback,
        "the end of its output": why.stdout,
        "the end of its error output": why.stderr,
    }
    for name, text in texts.items():
        if text:
            yield name, plain(text)


def _facts(status: Status) -> list[tuple[str, Any]]:
    request, progress = status.request, status.progress
    facts: list[tuple[str, Any]] = [("request", request.request_id)]
    if request.name:
        facts.append(("name", request.name))
    facts.append(("accepted", _moment(request.created_timestamp)))
    if request.ended_timestamp is not None:
        seconds = request.ended_timestamp - request.began_timestamp
        facts.append(("ended", f"{_moment(request.ended_timestamp)}, after {seconds:.3g} s"))
    if progress is not None and progress.children:
        failed = f", {progress.failed} of them failed" if progress.failed else ""
        facts.append(("children", f"{progress.ended} of {progress.children} ended{failed}"))
    if request.expires_timestamp is not None:
        facts.append(("kept until", _moment(request.expires_timestamp)))
    return facts


def _moment(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(timestamp))
