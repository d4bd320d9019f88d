"""Who may call, and what for: API tokens, from a cache that follows the store, and what each view takes."""

from __future__ import annotations

import hmac
import logging
import math
import threading
import time
from enum import Enum
from typing import NamedTuple

from mr.config import Config
from mr.errors import CorruptRecord, StoreUnavailable
from mr.kv.base import Entry, Event, Store
from mr.model import keys, tokens
from mr.model.entities import Request, decode
from mr.model.records import Scope, Token
from mr.web.following import Subject
from mr.web.problems import Forbidden, Unauthorized
from mr.web.proxies import is_local

log = logging.getLogger(__name__)

TOKEN_ID = "token_id"
"""Under this name the context of a request has the token that it was posted with."""

REFUSAL = (
    "This takes an API token, as in 'Authorization: Bearer TOKEN'. None was given, or one that is wrong, expired or "
    "revoked. `jobx token create` makes them."
)
"""One text for everything, so that nobody learns from it."""


class Need(Enum):
    """What a view takes."""

    NOTHING = "nothing"
    """For those who have no token, such as a load balancer."""
    TOKEN = "token"
    """Any token."""
    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"
    SEE = "see"
    """``read``; to see what was posted with the token itself, ``submit`` is enough. Only for views of one request."""
    STEER = "steer"
    """``admin``; for what was posted with the token itself, ``submit`` is enough. Only for views of one request."""


_SCOPES: dict[Need, Scope] = {
    Need.SUBMIT: "submit",
    Need.READ: "read",
    Need.ADMIN: "admin",
    Need.SEE: "read",
    Need.STEER: "admin",
}

_OF_OWN = (Need.SEE, Need.STEER)


class Caller(NamedTuple):
    """Who asks. Without a ``token_id`` it is a token of MR_API_TOKENS, or somebody who needs none."""

    token_id: str | None = None
    scopes: frozenset[Scope] = frozenset({"admin"})
    workflow_names: frozenset[str] = frozenset()
    """Empty: all."""

    @property
    def sees_all_workflows(self) -> bool:
        return not self.workflow_names

    def has(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def check(self, need: Need | None, workflow: str | None) -> None:
        """What can be said before the request that it is about is read.

        :raises Forbidden: the token is not for that, or not for that workflow.
        """
        if need is None:
            raise Forbidden("JobX does not know who may use this URL, so nobody may.")
        if workflow is not None and self.workflow_names and workflow not in self.workflow_names:
            raise Forbidden(f"This token is not for the workflow {workflow!r}.")
        scope = _SCOPES.get(need)
        if scope is not None and not self.has(scope) and not (need in _OF_OWN and self.has("submit")):
            raise Forbidden(f"This token lacks the scope {scope!r}, which this takes.", scope)

    def check_request(self, need: Need, request: Request) -> None:
        """
        :raises Forbidden: the token is not for that request.
        """
        scope = _SCOPES[need]
        is_own = self.token_id is not None and request.context.get(TOKEN_ID) == self.token_id
        if not self.has(scope) and not (is_own and self.has("submit")):
            raise Forbidden(
                f"This token lacks the scope {scope!r}, which this takes for a request that another one posted.", scope
            )


ANYONE = Caller()


class _Held(NamedTuple):
    """A token as it is cached, with the revision of its record."""

    digest: bytes
    expires: float
    caller: Caller
    modified: int


class Access(Subject):
    """The API tokens. Safe to use from many threads or greenlets.

    All tokens are held, so that one which is not held is new or none: then the store is asked, though only so often
    that guessing costs it little. What is held is told by the watch, and compared with the store now and then.
    """

    prefixes = (keys.TOKENS,)

    _LOOKS_A_SECOND = 20
    _PAUSE_S = 0.1

    def __init__(self, store: Store, config: Config) -> None:
        self._store, self._config = store, config
        self._given = [token.encode() for token in config.api_tokens]
        self._held: dict[str, _Held] = {}
        self._is_loaded = False
        self._trouble: StoreUnavailable | None = None
        self._lock = threading.Lock()
        self._changes = 0
        self._second = 0
        self._looks = 0

    def caller(self, authorization: str, address: str) -> Caller:
        """Who asks, with this header, from this address.

        :raises Unauthorized: nobody who may.
        :raises StoreUnavailable: that cannot be told now.
        """
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() == "bearer":
            return self._holder(text.strip())
        if self._config.allow_anonymous or self._needs_none(address):
            return ANYONE
        raise Unauthorized(REFUSAL)

    def _needs_none(self, address: str) -> bool:
        """Without any token at all, JobX is for those who are on this machine."""
        if self._given or not self._config.bind.is_local or not is_local(address):
            return False
        if not self._is_loaded:
            raise self._unknown()
        return not self._held

    def _holder(self, text: str) -> Caller:
        encoded = text.encode("utf-8", "replace")
        # All of them are compared, so that the time taken says nothing.
        if any([hmac.compare_digest(encoded, token) for token in self._given]):
            return ANYONE
        parts = tokens.parse(text)
        held = None if parts is None else self._held.get(parts.token_id) or self._look(parts.token_id)
        if (
            parts is None
            or held is None
            or not hmac.compare_digest(tokens.digest(parts.secret).encode(), held.digest)
            or time.time() >= held.expires
        ):
            raise Unauthorized(REFUSAL)
        return held.caller

    # --- what is held -----------------------------------------------------------------------------------------------

    def _look(self, token_id: str) -> _Held | None:
        """Whoever made a token a moment ago and uses it may be quicker than the watch.

        :raises StoreUnavailable: the store cannot be asked, or could not a moment ago.
        """
        if self._trouble is not None:
            raise self._unknown()
        second = int(time.monotonic())
        with self._lock:
            if second != self._second:
                self._second, self._looks = second, 0
            self._looks += 1
            is_allowed = self._looks <= self._LOOKS_A_SECOND
            changes = self._changes
        if not is_allowed:
            # The watch tells of a new one soon enough, and whoever guesses has time.
            time.sleep(self._PAUSE_S)
            return self._held.get(token_id)
        try:
            [entry] = self._store.get([keys.token(token_id)])
        except StoreUnavailable as error:
            self._trouble = error
            raise
        if entry is None:
            return None
        held = _hold(entry)
        with self._lock:
            # What was read while something changed may be older than the change, which is told only once.
            if changes == self._changes:
                self._held[token_id] = held
        return held

    def _unknown(self) -> StoreUnavailable:
        return StoreUnavailable(f"The API tokens cannot be read now: {self._trouble or 'they are yet to be'}.")

    def changed(self, event: Event) -> None:
        token_id = event.key.removeprefix(keys.TOKENS)
        with self._lock:
            self._changes += 1
            if event.value is None:
                self._held.pop(token_id, None)
            else:
                self._held[token_id] = _hold(Entry(event.key, event.value, 0, event.revision, 1))

    def check(self) -> None:
        try:
            self._compare()
        except StoreUnavailable as error:
            self._trouble = error
            raise
        self._trouble, self._is_loaded = None, True

    def _compare(self) -> None:
        """Makes what is held what is stored; only what differs is read whole."""
        stored: dict[str, int] = {}
        after = ""
        while page := self._store.list(keys.TOKENS, after=after, keys_only=True):
            stored |= {entry.key.removeprefix(keys.TOKENS): entry.modified for entry in page}
            after = page[-1].key
        held = {token_id: one.modified for token_id, one in list(self._held.items())}
        differing = [token_id for token_id, modified in stored.items() if held.get(token_id) != modified]
        entries = self._store.get([keys.token(token_id) for token_id in differing])
        with self._lock:
            for token_id in held.keys() - stored.keys():
                self._held.pop(token_id, None)
            for token_id, entry in zip(differing, entries, strict=True):
                if entry is None:
                    self._held.pop(token_id, None)
                else:
                    self._held[token_id] = _hold(entry)


def _hold(entry: Entry) -> _Held:
    try:
        token = decode(Token, entry.key, entry.value)
    except CorruptRecord as error:
        # It lets nobody in, but it is there: JobX does not open itself because of it.
        log.error("An API token is of no use: %s", error)
        return _Held(b"", -math.inf, Caller(scopes=frozenset()), entry.modified)
    expires = math.inf if token.expires_timestamp is None else token.expires_timestamp
    caller = Caller(token.token_id, frozenset(token.scopes), frozenset(token.workflow_names))
    return _Held(token.secret_sha256.encode(), expires, caller, entry.modified)
