"""What people see of a tree: in a terminal, and in a pipe."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
from trace_requests import BEGAN, NONCE, WORKFLOW, Story, fail_child, failed, found_request, load, shop

from mr.errors import InvocationNotFound
from mr.kv.memory import MemoryStore
from mr.model import ids, keys
from mr.model.entities import Failure
from mr.model.records import FailedChild
from mr.trace import flat, reasons, text, tree, why
from mr.trace.data import WHOLE


@pytest.fixture
def story() -> Story:
    return Story(MemoryStore())


# --- text ------------------------------------------------------------------------------------------------------


def test_a_small_tree_has_a_line_for_each_invocation(story: Story) -> None:
    shop(story)
    assert text.render(load(story)).splitlines() == [
        f"shop/revenue {story.id}  done in 2.00 s, 6 invocations",
        "└── regions map done  1.50 s, 2 children",
        "    ├── region map 0 done  20 ms",
        "    │   └── region reduce done  20 ms",
        "    ├── region map 1 done  20 ms",
        "    │   └── region reduce done  20 ms",
        "    └── regions reduce done  10 ms",
    ]


def test_a_wide_fan_out_is_one_line(story: Story) -> None:
    shop(story, children=1200)
    lines = text.render(load(story)).splitlines()
    assert len(lines) == 5
    assert lines[2].strip("├─ ") == "region map x 1,200: 1,200 done  p50 20 ms, p90 20 ms, max 20 ms"
    assert "region reduce x 1,200: 1,200 done" in lines[3]


def test_a_failure_shows_the_handlers_own_line(story: Story) -> None:
    shop(story)
    fail_child(story, 1)
    shown = text.render(load(story))
    assert "region map 1 failed" in shown
    assert "ZeroDivisionError: division by zero  (handler orders)" in shown
    assert 'File "shop/orders.py", line 5, in mapper' in shown
    assert "yield region, amount / 0" in shown


def test_the_failing_one_of_many_is_named_under_their_line(story: Story) -> None:
    shop(story, children=40)
    fail_child(story, 17)
    shown = text.render(load(story))
    assert "region map x 40: 1 failed, 39 done" in shown
    assert "region map 17 failed" in shown
    assert "region map 16" not in shown


def test_the_same_traceback_is_shown_once(story: Story) -> None:
    shop(story, children=12)
    for slot in (3, 4, 5):
        fail_child(story, slot, f"message {slot}")
    shown = text.render(load(story))
    assert shown.count('File "shop/orders.py"') == 1
    assert shown.count("at shop/orders.py:5, as above") == 2


def test_a_failed_reduce_tells_its_failure_once(story: Story) -> None:
    story.failure(story.root, "count", partitions=1)
    story.failure(ids.reduce_of(story.root, 0), "count")
    story.request(state="failed")
    lines = text.render(load(story)).splitlines()
    assert sum("ZeroDivisionError: no  (handler" in line for line in lines) == 1
    assert "count reduce failed" in lines[2]


def test_an_attempt_that_will_be_repeated_says_why(story: Story) -> None:
    story.invocation(story.root, "count", "ready", attempt=1, failures=1, error=failed("flaky"))
    assert "attempt 1 failed: ZeroDivisionError: flaky" in text.render(load(story))


def test_what_ran_when_its_request_ended_has_stopped(story: Story) -> None:
    story.invocation(story.root, "count", "running")
    assert "running" in text.render(load(story))
    assert "on host-1" in text.render(load(story))
    story.request(state="cancelled")
    assert "count map stopped" in text.render(load(story))


def test_what_a_handler_says_cannot_drive_the_terminal(story: Story) -> None:
    shop(story)
    fail_child(story, 0, "\x1b]0;title\x07 \x1b[2J [bold]x[/bold] \u202e\u2028 :smile:")
    for shown in (text.render(load(story)), "\n".join(flat.lines(story.store, found_request(story)))):
        assert "\x1b" not in shown
        assert "\x07" not in shown
        assert "\u202e" not in shown
        assert "\u2028" not in shown
        assert "[bold]x[/bold]" in shown
        assert ":smile:" in shown


def test_colours_are_for_terminals_only(story: Story) -> None:
    shop(story)
    assert "\x1b[" not in text.render(load(story))
    assert "\x1b[" in text.render(load(story), is_colored=True)


def test_a_narrow_terminal_wraps_and_a_pipe_does_not(story: Story) -> None:
    shop(story)
    fail_child(story, 0, "word " * 100)
    found = load(story)
    assert max(map(len, text.render(found, 60).splitlines())) <= 60
    assert any(len(line) > 400 for line in text.render(found).splitlines())


def test_what_runs_says_for_how_long(story: Story) -> None:
    story.invocation(story.root, "count", "running")
    found = dataclasses.replace(load(story), now=BEGAN + 75)
    assert [line.split(", ")[0] for line in text.render(found).splitlines()] == [
        f"shop/revenue {story.id}  running for 1 min 15 s",
        "└── count map running  for 1 min 15 s",
    ]


def test_a_name_is_shown_with_its_request(story: Story) -> None:
    shop(story)
    story.request(state="done", name="weekly\nreport")
    assert text.render(load(story)).startswith(f'shop/revenue {story.id} "weekly report"  done')


def test_states_are_counted_where_they_differ(story: Story) -> None:
    shop(story, children=40)
    fail_child(story, 17)
    assert "failed in 2.00 s, 81 invocations: 1 failed, 80 done" in text.render(load(story)).splitlines()[0]


def test_what_failed_has_its_key_and_its_id_in_one_piece(story: Story) -> None:
    shop(story, children=12)
    child = fail_child(story, 3)
    story.dataset(keys.chunk(WORKFLOW, story.id, story.root, NONCE, 0), [[f"item-{n}", n] for n in range(12)])
    lines = text.render(load(story), 40).splitlines()
    assert any('region map 3 "item-3" failed' in line for line in lines)
    assert any(line.endswith(child) for line in lines)


def test_no_line_ends_between_a_number_and_its_unit(story: Story) -> None:
    shop(story, children=12)
    for width in range(30, 100, 7):
        shown = text.render(load(story), width)
        assert shown.count("20 ms") == 6
        assert "\xa0" not in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_a_terminal_gets_only_characters_that_it_has(story: Story, encoding: str) -> None:
    shop(story)
    fail_child(story, 0, "漢字 é…")
    shown = text.render(load(story), 80, encoding=encoding, head=partial(reasons.brief, why.explain(*story.told())))
    shown.encode(encoding)
    assert "\\u6f22\\u5b57" in shown
    assert "regions map -> region map 0" in shown
    assert "`-- regions map" in shown


def test_a_failure_is_explained_before_the_tree(story: Story) -> None:
    shop(story, children=40)
    fail_child(story, 17)
    shown = text.render(load(story), head=partial(reasons.brief, why.explain(*story.told())))
    lines = shown.splitlines()
    assert lines[0].startswith(f"shop/revenue {story.id}  failed")
    assert lines[1:8] == [
        "path     regions map → region map 17 (one of 40)",
        "failed   ZeroDivisionError: division by zero",
        "where    shop/orders.py:5",
        "             yield region, amount / 0",
        "handler  orders",
        f"more     jobx request why {story.id}",
        "invocations",
    ]


def why_of(story: Story) -> list[tuple[str, str]]:
    """The lines of what is told first, as names and texts."""
    shown = reasons.render(why.explain(*story.told()))
    rows = (line.partition("  ") for line in shown.partition("\n\n")[0].splitlines()[1:])
    return [(name, text.strip()) for name, _, text in rows]


def test_what_a_parent_failed_with_is_told_before_what_it_failed_for(story: Story) -> None:
    shop(story, children=12)
    child = fail_child(story, 3)
    story.invocation(story.root, "regions", "failed", error=too_many(), mapped_count=12)
    story.request(state="failed", failed_invocation_id=story.root)
    key = keys.failed(WORKFLOW, story.id, story.root, 0, 3)
    story.records[key] = FailedChild(invocation_id=child, exception_type="ZeroDivisionError", exception_message="no")
    story.dataset(keys.chunk(WORKFLOW, story.id, story.root, NONCE, 0), [[["item", n], n] for n in range(12)])
    told = why_of(story)
    assert ("failed", "ValueError: 1 of 12 failed and 0 may") in told
    assert ("because", "ZeroDivisionError: division by zero") in told
    assert ("key", '["item",3]') in told


def too_many() -> Failure:
    return Failure(exception_type="ValueError", exception_message="1 of 12 failed and 0 may")


def test_a_failure_that_did_not_end_the_request_is_told_as_one(story: Story) -> None:
    story.invocation(story.root, "count", error=failed("flaky"), attempt=2)
    story.request(state="done")
    told = why_of(story)
    assert ("tolerated", "ZeroDivisionError: flaky") in told
    assert ("attempt", "1; attempt 2 followed") in told


def test_what_is_tried_again_says_when(story: Story) -> None:
    story.invocation(story.root, "count", "ready", attempt=1, error=failed(), retry_timestamp=BEGAN + 5)
    assert "again in 3.00 s" in text.render(dataclasses.replace(load(story), now=BEGAN + 2))


def test_why_shows_everything_that_is_known(story: Story) -> None:
    shop(story)
    child = fail_child(story, 1, "\x1b[2Jno", stdout="printed \x07\n", stderr="warned\n")
    shown = reasons.render(why.explain(*story.told()))
    assert "\x1b" not in shown and "\x07" not in shown
    for line in (
        "attempt     1",
        "worker      host-1",
        f"invocation  {child}",
        '  File "shop/orders.py", line 5, in mapper',
        "the end of its output:\nprinted \\x07",
        "the end of its error output:\nwarned",
        f"to look further:\n  jobx request tree shop {story.id}",
    ):
        assert f"\n{line}" in shown


# --- data ------------------------------------------------------------------------------------------------------


def with_data(story: Story) -> tuple[str, str]:
    shop(story)
    child = story.child(story.root, 1)
    story.dataset(keys.dataset(WORKFLOW, story.id, story.root, "arguments"), [["days", n] for n in range(25)])
    story.dataset(keys.chunk(WORKFLOW, story.id, story.root, NONCE, 0), [["north", 1], ["south", "s" * 5000]])
    story.dataset(keys.dataset(WORKFLOW, story.id, child, "post_combine"), [["south", 1], ["south", "t" * 500]])
    story.session(child, {"seen": [1, 2]})
    story.output(child, [["south", 7]])
    return story.tell(), child


def test_data_is_shown_and_what_is_cut_says_so(story: Story) -> None:
    request_id, child = with_data(story)
    shown = text.render(tree.load(story.store, WORKFLOW, request_id, data=True))
    for part in (
        "arguments  25 pairs, ",
        '["days", 9]',
        "… and 15 more pairs",
        f"for all of it: jobx request tree {WORKFLOW} {story.root} --data --whole",
        "sss… cut: it has 5,012 characters",
        '["south", 1]',
        "ttt… cut: it has 512 characters",
        f"for all of it: jobx request tree {WORKFLOW} {child} --data --whole",
        "session  1 pair, 14 bytes",
        '["seen", [1, 2]]',
        "post_reduce  1 pair, 13 bytes",
        '["south", 7]',
    ):
        assert part in shown, part
    assert '["days", 10]' not in shown


def test_whole_data_is_not_cut(story: Story) -> None:
    request_id, _ = with_data(story)
    shown = text.render(tree.load(story.store, WORKFLOW, request_id, data=True, cut=WHOLE))
    assert "s" * 5000 in shown
    assert '["days", 24]' in shown
    assert "for all of it" not in shown


# --- a part of it ----------------------------------------------------------------------------------------------


def test_an_invocation_is_shown_with_what_is_below_it(story: Story) -> None:
    shop(story, children=12)
    child = story.child(story.root, 1)
    found = tree.load(story.store, WORKFLOW, story.tell(), below=child)
    assert text.render(found).splitlines()[1:] == [
        "└── region map 1 done  20 ms",
        "    └── region reduce done  20 ms",
    ]
    lines = list(flat.lines(story.store, found_request(story), child))
    assert [line.split()[0] for line in lines] == [child, f"{child}.r0"]
    with pytest.raises(InvocationNotFound):
        tree.load(story.store, WORKFLOW, story.id, below=story.child(story.root, 12))


# --- the flat list ---------------------------------------------------------------------------------------------


def test_the_flat_list_has_every_invocation_in_columns(story: Story) -> None:
    shop(story, children=130)
    failing = fail_child(story, 3)
    lines = list(flat.lines(story.store, found_request(story)))
    assert lines[0] == f"{story.root}  regions  map  done  1.500  1  130  host-1  -"
    below = [line for line in lines if line.startswith("  ") and line[2] != " "]
    assert [line.split()[0] for line in below] == [story.child(story.root, n) for n in range(130)] + [
        f"{story.root}.r0"
    ]
    assert f"  {failing}  region  map  failed  0.010  1  -  host-1  ZeroDivisionError: division by zero" in lines
    assert len([line for line in lines if line.startswith("    ")]) == 129


def test_the_flat_list_has_every_partition(story: Story) -> None:
    story.invocation(story.root, "count", partitions=100)
    for partition in range(100):
        story.invocation(ids.reduce_of(story.root, partition), "count")
    lines = list(flat.lines(story.store, found_request(story)))
    assert [line.split()[0] for line in lines[1:]] == [ids.reduce_of(story.root, n) for n in range(100)]


def test_the_flat_list_says_what_has_stopped(story: Story) -> None:
    story.invocation(story.root, "count", "running")
    story.request(state="cancelled")
    [line] = flat.lines(story.store, found_request(story))
    assert line.split()[3] == "stopped"


def test_what_did_not_begin_or_does_not_count_has_no_line(story: Story) -> None:
    story.invocation(story.root, "split", "waiting", mapped_count=3)
    story.seal(story.root, "region", 3)
    story.invocation(story.child(story.root, 1), "region", "running")
    story.invocation(ids.child_of(story.root, "otherone", 0), "region")
    lines = list(flat.lines(story.store, found_request(story)))
    assert [line.split()[:4] for line in lines] == [
        [story.root, "split", "map", "waiting"],
        [story.child(story.root, 1), "region", "map", "running"],
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 ms"), (0.0123, "12 ms"), (0.9996, "1.00 s"), (59.99, "59.99 s"), (125, "2 min 5 s"), (7260, "2 h 1 min")],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown
