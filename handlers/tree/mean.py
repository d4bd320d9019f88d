"""
Averages the readings of a station; how many there must be stands in its mapper's session.

**
handler_type: reducer
argument_spec:
    - name: results
      type: iterator
"""

hours = S_GET("hours")

for station, readings in results:
    readings = list(readings)
    if len(readings) != hours:
        raise ValueError(f"{station} has {len(readings)} readings, not {hours}")
    yield station, round(sum(readings) / hours, 2)
