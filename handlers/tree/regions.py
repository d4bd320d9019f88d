"""
The top of the tree: one child a region.

**
handler_type: mapper
argument_spec:
    - name: arguments
      type: list
parameters:
    - {name: regions, type: list, required: false, default: [north, south], description: What to look at.}
    - {name: stations, type: integer, required: false, default: 3, description: How many stations a region has.}
"""

given = dict(arguments)
names = given.get("regions") or ["north", "south"]
stations = given.get("stations", 3)

yield MrConfigureToMap("region")

# A session is the mapper's note to its own reducer. No other invocation sees it.
S_SET("regions", len(names))

for name in names:
    yield name, stations
