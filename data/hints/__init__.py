"""Hints: what is wrong with a response, in words that never tell the gold answer.

A module for each shipped task, with `hint(response, reference)`: see pipeline/task.py.
"""
