"""For those who run gunicorn themselves, behind a supervisor of their own:

    gunicorn -c resources/gunicorn_prod.py 'mr.cli.serve:application()'

Everything comes from the environment (see ``jobx config``), with one process a CPU unless ``MR_WEB_PROCESSES`` says
otherwise; what is set below the last line wins. ``mr_start_gunicorn_prod`` and ``jobx server`` do the same without this
file, refuse a socket that is in use, and can be told to stop with their supervisor.
"""

# isort: off
from mr.web import patched  # noqa: F401 - before anything else is imported
# isort: on

import os

from mr.config import Config, one_per_cpu
from mr.web import logs
from mr.web.server import CONNECTIONS, allow_descriptors, settings

logs.to_stderr()
allow_descriptors(CONNECTIONS)
globals().update(settings(Config.read({"MR_WEB_PROCESSES": str(one_per_cpu())} | os.environ)))
