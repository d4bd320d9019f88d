"""A request's page for a browser: one document without anything from elsewhere."""

from __future__ import annotations

import time
from typing import Any

from jinja2 import Environment

from mr.web.front import Status
from mr.web.waiting import sentence

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
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
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
<h2>{{ failure.exception_type }} in {{ failure.handler_name or "a handler" }}</h2>
<pre>{{ failure.traceback or failure.exception_message }}</pre>
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
    return _template.render(
        request=status.request,
        facts=list(_facts(status)),
        waiting=sentence(status.request.workflow_name, status.waiting_for),
        failure=status.failure,
        tree=tree,
        links=links,
    )


def _facts(status: Status) -> list[tuple[str, Any]]:
    request, progress = status.request, status.progress
    facts: list[tuple[str, Any]] = [("request", request.request_id)]
    if request.name:
        facts.append(("name", request.name))
    facts.append(("accepted", _moment(request.created_timestamp)))
    if request.ended_timestamp is not None:
        seconds = request.ended_timestamp - request.created_timestamp
        facts.append(("ended", f"{_moment(request.ended_timestamp)}, after {seconds:.3g} s"))
    if progress is not None and progress.children:
        failed = f", {progress.failed} of them failed" if progress.failed else ""
        facts.append(("children", f"{progress.ended} of {progress.children} ended{failed}"))
    if request.expires_timestamp is not None:
        facts.append(("kept until", _moment(request.expires_timestamp)))
    return facts


def _moment(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(timestamp))
