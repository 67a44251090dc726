"""Measurements, not tests: one command each, ending with one line of JSON."""
