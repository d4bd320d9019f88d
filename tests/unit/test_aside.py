import subprocess
import sys

PROGRAM = """
from mr.web import patched
import os
from mr.web.aside import elsewhere

# The child has ended before its parent goes on.
os.register_at_fork(after_in_parent=lambda: os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT))
print(elsewhere(lambda: True), elsewhere(lambda: False), elsewhere(lambda: 1 / 0))
"""


def test_the_answer_of_a_process_that_ended_at_once_is_heard() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True False True\n", done.stderr
