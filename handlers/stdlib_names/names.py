"""
Counts the names in a Python file: every word that is no string, number or comment.

**
handler_type: mapper
argument_spec:
    - name: arguments
      type: list
"""

import collections
import os
import tokenize

yield MrConfigureToReturn()

for name, top in arguments:
    names = collections.Counter()
    try:
        # tokenize.open reads the file in the encoding that it declares.
        with tokenize.open(os.path.join(top, name)) as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type == tokenize.NAME:
                    names[token.string] += 1
                elif token.type == tokenize.ENDMARKER:
                    # It stands on the line after the last one.
                    lines = token.start[0] - 1
    except (SyntaxError, UnicodeError, tokenize.TokenError) as error:
        LOG.info("%s is left out: %s", name, error)
        yield ("unreadable",), 1
        continue
    yield ("files",), 1
    yield ("lines",), lines
    for word, count in names.items():
        yield ("name", word), count
