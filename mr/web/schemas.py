"""The JSON that the front end takes and answers, as schemas of the dialect of OpenAPI 3.1 (JSON Schema 2020-12)."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from mr.model.deliveries import MAX_TARGETS
from mr.model.entities import Failure, Invocation, Request
from mr.model.progress import Progress, Waiting
from mr.web.posts import MAX_NAME_CHARS, MAX_RETENTION_S, NEWEST, SAME
from mr.web.problems import FACTS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "number", "minimum": 0}
ANYTHING: Schema = {}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def an_object(description: str = "", /, *, optional: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """All properties are required but the ``optional`` ones."""
    told = {"description": description} if description else {}
    required = [name for name in properties if name not in optional]
    return {**told, "type": "object", "properties": properties, "required": required}


PAIR: Schema = {
    "description": "A key (null, boolean, number, string, or a list of keys) and a value, which is any JSON.",
    "type": "array",
    "prefixItems": [ANYTHING, ANYTHING],
    "minItems": 2,
    "maxItems": 2,
}

POST: Schema = {
    "type": "object",
    "properties": {
        "arguments": {"description": "What the job works on, by name.", "type": ["object", "null"]},
        "name": {"description": "For people.", "type": ["string", "null"], "maxLength": MAX_NAME_CHARS},
        "retention_s": {
            "description": "How long the request is kept after its end; -1: for ever.",
            "type": ["integer", "null"],
            "minimum": -1,
            "maximum": MAX_RETENTION_S,
        },
        "writer": {"description": "What delivers the result, as `inline` or `https://host/path`.", **or_null(TEXT)},
        "notify": {
            "description": "Who is told of the end, as `mailto:who@example.com` or `failed:https://host/path`.",
            "anyOf": [TEXT, {**list_of(TEXT), "maxItems": MAX_TARGETS}, {"type": "null"}],
        },
        "input": {"description": "Not taken by this version.", "type": "null"},
        "output": {"description": "Not taken by this version.", "type": "null"},
    },
    "additionalProperties": False,
}

REDRIVE: Schema = {
    "type": "object",
    "properties": {
        "manifest": {
            "description": "Whether to run on the handlers and steps that there are now, or that the request ran on.",
            "enum": [NEWEST, SAME],
            "default": NEWEST,
        }
    },
    "additionalProperties": False,
}

RESULT = an_object(
    "`result` is empty where the request's writer delivers it.",
    result={"type": "object", "properties": {"pairs": list_of(ref("Pair"))}},
)

ACCEPTED = an_object(
    "The request runs.",
    request_id=TEXT,
    url={"type": "string", "format": "uri", "description": "Its status."},
    result={"type": "null"},
)

PROBLEM = an_object(
    "An error (RFC 9457). What else it is about are further members.",
    type={"type": "string", "pattern": "^urn:jobx:[a-z0-9-]+$"},
    title=TEXT,
    status={"type": "integer", "minimum": 400, "maximum": 599},
    detail={"description": "What is wrong, and what to do.", **TEXT},
    parameter={"description": "The part of the input that is to blame.", **TEXT},
    scope={"description": "What the token lacks.", **TEXT},
    limit={"description": "The limit that was reached.", "type": "integer"},
    limit_name=TEXT,
    current={"description": "How much of what is limited there is.", "type": "integer"},
    request_id=TEXT,
    invocation_id=TEXT,
    exception_type={"description": "Of the handler's exception, or one of the platform's own.", **TEXT},
    exception_message=TEXT,
    place={"description": "The handler's line, as `split.py:7`.", **TEXT},
    source_line=TEXT,
    look={"description": "The command that tells the whole story.", **TEXT},
    unreachable=list_of(TEXT),
    incident={"description": "The log has more under it.", **TEXT},
    optional=(*FACTS, "incident"),
)

_URL: Schema = {"type": "string", "format": "uri"}

_STATES: Schema = {"description": "How many there are, by state.", "type": "object", "additionalProperties": COUNT}

_TIMES = or_null(
    an_object("Seconds from start to end, of those that ended.", p50=SECONDS, p90=SECONDS, longest=SECONDS)
)

_PREVIEW = an_object(
    "The beginning of a dataset. Of a long pair there is the beginning of its text; `cut` has, by its place in "
    "`pairs`, how many characters it has.",
    count=COUNT,
    bytes=COUNT,
    pairs=list_of(ANYTHING),
    cut={"type": "object", "additionalProperties": COUNT},
)

GROUP = an_object(
    "The invocations of one parent that are of one step and direction. Many are folded: `nodes` are those that fail "
    "and a few samples, and `below` adds up what is below all of them.",
    step_name=TEXT,
    direction={"enum": ["map", "reduce"]},
    total=COUNT,
    states=_STATES,
    failing=COUNT,
    times=_TIMES,
    is_folded={"type": "boolean"},
    nodes=list_of(ref("Node")),
    below=list_of(ref("Group")),
)

_WHY = an_object(
    "The way from the root to the invocation that failed, the line of its handler, the key that it was given (JSON "
    "text), and the command that tells the rest.",
    path=list_of(
        an_object(
            "`number` is which child, or which partition, it is, from 0, of `siblings`.",
            invocation_id=TEXT,
            step_name=TEXT,
            direction={"enum": ["map", "reduce"]},
            state=TEXT,
            attempt=COUNT,
            number=or_null(COUNT),
            siblings=or_null(COUNT),
        )
    ),
    place=or_null(TEXT),
    source_line=or_null(TEXT),
    key=or_null(TEXT),
    look=TEXT,
)

HOME = {"type": "object", "additionalProperties": TEXT, "required": ["name", "version"]}

HEALTH = an_object(status={"enum": ["ok"]})

READINESS = an_object(status={"enum": ["ready"]})


def components() -> dict[str, Schema]:
    """All schemas that have a name."""
    _, generated = msgspec.json.schema_components(
        [Request, Invocation, Failure, Progress, Waiting], ref_template="#/components/schemas/{name}"
    )
    for schema in generated.values():
        schema["description"] = inspect.cleandoc(schema["description"]).replace("``", "`")
    request, invocation = generated["Request"], generated.pop("Invocation")
    # What has begun may also have been stopped; what is being removed is answered with 410.
    invocation["properties"]["state"]["enum"] = sorted([*invocation["properties"]["state"]["enum"], "stopped"])
    request["properties"]["state"]["enum"] = sorted({*request["properties"]["state"]["enum"]} - {"expiring"})
    return {
        **{name: generated[name] for name in sorted(generated)},
        "Accepted": ACCEPTED,
        "Group": GROUP,
        "Node": _more(
            invocation,
            "An invocation, and what is below it: its children, then its reduces.",
            optional=("key", "data"),
            seconds=or_null(SECONDS),
            key={"description": "Of a child that failed: JSON text.", **TEXT},
            data={"type": "object", "additionalProperties": _PREVIEW},
            groups=list_of(ref("Group")),
        ),
        "Pair": PAIR,
        "Post": POST,
        "Redrive": REDRIVE,
        "Problem": PROBLEM,
        "Result": RESULT,
        "Status": _more(
            request,
            "A request as it is stored, with how far it is.",
            progress=or_null(
                an_object(
                    "How far the root is; `ended` of its `children` did, with the `failed` ones.",
                    state=TEXT,
                    children={"type": ["integer", "null"]},
                    ended=COUNT,
                    failed=COUNT,
                )
            ),
            waiting_for=list_of(ref("Waiting")),
            detail={"description": "What can be done about what it waits for.", **or_null(TEXT)},
            error=or_null(ref("Failure")),
            why=or_null(_WHY),
            url=_URL,
            links={"type": "object", "additionalProperties": _URL},
        ),
        "Tree": an_object(
            "`total` invocations, as far as they are known.",
            request=ref("Request"),
            total=COUNT,
            states=_STATES,
            root=or_null(ref("Node")),
        ),
    }


def _more(schema: Schema, description: str, /, optional: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """The schema of the same object with further properties."""
    required = [*schema["required"], *(name for name in properties if name not in optional)]
    found = {**schema, "properties": {**schema["properties"], **properties}, "required": required}
    return {**found, "description": description, "title": description.split(",")[0].rstrip(".")}
