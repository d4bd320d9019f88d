"""
Adds up what was counted under each key. Serves as a combiner too.

**
handler_type: reducer
argument_spec:
    - name: results
      type: iterator
"""


def reducer(results):
    for key, counts in results:
        yield key, sum(counts)
