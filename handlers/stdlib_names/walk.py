"""
Finds the Python files under a directory and maps each to a child of its own.

**
handler_type: mapper
argument_spec:
    - name: arguments
      type: list
parameters:
    - name: path
      type: string
      required: false
      default: ""
      description: The directory to walk. Without one, that of Python's own standard library.
"""

import os
import sysconfig

# What is installed beside the library is not part of it, and its tests would double the work.
SKIPPED = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo"}


def mapper(arguments):
    top = dict(arguments).get("path") or sysconfig.get_path("stdlib")
    if not os.path.isdir(top):
        raise ValueError(f"There is no directory {top!r} on this worker.")
    yield MrConfigureToMap("count")
    for directory, directories, files in os.walk(top):
        directories[:] = sorted(name for name in directories if name not in SKIPPED)
        for name in sorted(files):
            if name.endswith(".py"):
                yield os.path.relpath(os.path.join(directory, name), top), top
