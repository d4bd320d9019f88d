def reducer(results):
    for word, counts in results:
        yield word, sum(counts)
