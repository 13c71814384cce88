"""Measurements, run by hand; none is a test (see README.md)."""
