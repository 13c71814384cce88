"""Final answers in mathematics: how they are read, and when two of them are the same.

    reader.py ──▶ lexing.py ──▶ arguments and number literals (literals.py)
        │
        ├──▶ expressions.py     3x + \\sqrt{2}, over units.py for what follows a number
        ▼
    answers.py                  what an answer can be: a value, a set, a matrix, a text, …
        ▼
    equality.py ──▶ values.py   exact where both are exact, else by digits that are shown

The rule of all of it: a text is read to its end, or not at all (`Unreadable`). What has two usual
meanings is read in one of them and remembered as a doubt: good enough for a response, not for a
gold answer (golds.py). No text is run as code, and its length bounds time and memory.
"""
