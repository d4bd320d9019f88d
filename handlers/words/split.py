def mapper(arguments):
    yield MrConfigureToReturn()
    for key, text in arguments:
        for word in text.split():
            yield word, 1
