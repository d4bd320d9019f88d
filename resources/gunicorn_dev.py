"""Gunicorn in one process that logs every answer, for those who run it themselves:

    gunicorn -c resources/gunicorn_dev.py 'mr.cli.serve:application()'

``mr_start_gunicorn_dev`` does the same without this file, with a worker beside it. See ``gunicorn_prod.py``.
"""

# isort: off
from mr.web import patched  # noqa: F401 - before anything else is imported
# isort: on

import os

from mr.config import Config
from mr.web import logs
from mr.web.server import CONNECTIONS, allow_descriptors, settings

logs.to_stderr()
allow_descriptors(CONNECTIONS)
globals().update(settings(Config.read(os.environ), has_access_log=True))
