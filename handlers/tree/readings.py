"""
A leaf of the tree: the readings of one station, made up from its name so that they are the same every time.

**
handler_type: mapper
argument_spec:
    - name: arguments
      type: list
"""

import zlib

yield MrConfigureToReturn()

for station, hours in arguments:
    S_SET("hours", hours)
    base = zlib.crc32(station.encode()) % 20
    for hour in range(hours):
        yield station, base + abs(12 - hour)
