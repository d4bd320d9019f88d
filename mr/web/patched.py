"""Importing this makes blocking calls yield to other greenlets. Only for the first line of a program.

What was imported before keeps the unpatched originals, so nothing else may come first: neither this package's modules
nor anything that uses sockets or locks.
"""

from gevent import monkey

monkey.patch_all()
