"""
Ranks the regions, the warmest first.

**
handler_type: reducer
argument_spec:
    - name: results
      type: iterator
"""

warmest = [(found["mean"], region, found["station"]) for region, values in results for found in values]
LOG.info("%d of %d regions have stations", len(warmest), S_GET("regions"))
for place, (mean, region, station) in enumerate(sorted(warmest, reverse=True), start=1):
    yield place, {"region": region, "station": station, "mean": mean}
