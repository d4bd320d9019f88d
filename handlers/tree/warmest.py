"""
Picks the warmest station of a region. A region without stations answers nothing.

**
handler_type: reducer
argument_spec:
    - name: results
      type: iterator
"""

stations = [(mean, station) for station, means in results for mean in means]
if stations:
    mean, station = max(stations)
    yield S_GET("region"), {"station": station, "mean": mean}
