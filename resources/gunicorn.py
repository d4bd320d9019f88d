"""For those who run gunicorn themselves, behind a supervisor of their own:

    gunicorn -c resources/gunicorn.py 'mr.cli.serve:application()'

Everything comes from the environment (see ``jobx config``); what is set below the last line wins. ``jobx server`` does
the same without this file, and also binds and checks before anything is forked.
"""

# isort: off
from mr.web import patched  # noqa: F401 - before anything else is imported
# isort: on

import os

from mr.config import Config
from mr.web.server import CONNECTIONS, allow_descriptors, settings

allow_descriptors(CONNECTIONS)
globals().update(settings(Config.read(os.environ)))
