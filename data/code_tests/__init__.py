"""Judging code by its tests: rows, extraction, the response's process, assertions, feedback.

    extraction.py   the code of a response
    process.py      the confined process that runs it, seen from the verifier
    inside.py       the same, seen from inside
    plain_data.py   values on their way out of that process
    assertions.py   tests that are code: which assertion fails, for which call
    judging.py      the verdict, and the words of its feedback

Two processes share the work, so that a response can't write its own verdict:

    verifier's child                          the response's process
    tests, expected values    call, inputs ▶  the response's code
    compares                  ◀ plain data

The response's process is told the inputs of one call at a time, and never an expected value. What
comes back is decoded to plain data of Python's own types, and compared where no code of the
response runs. So whatever the response does to its own interpreter, all it can do is return.
"""
