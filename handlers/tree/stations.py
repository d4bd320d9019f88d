"""
The middle of the tree: one child a station.

**
handler_type: mapper
argument_spec:
    - name: arguments
      type: list
"""

yield MrConfigureToMap("station")

for region, stations in arguments:
    S_SET("region", region)
    for number in range(1, stations + 1):
        yield f"{region}-{number}", 24
