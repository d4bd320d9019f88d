"""
Adds up the counts of all files and answers the totals and the twenty commonest names.

**
handler_type: reducer
argument_spec:
    - name: results
      type: iterator
"""

import heapq

SHOWN = 20


def reducer(results):
    names = []
    for key, counts in results:
        if key[0] == "name":
            # Negative, so that the smallest is the commonest and, of several, the first by name.
            names.append((-sum(counts), key[1]))
        else:
            yield key[0], sum(counts)
    for place, (count, name) in enumerate(heapq.nsmallest(SHOWN, names), start=1):
        yield (place, name), -count
