"""The stages of `annotate`: frozen settings, callable from table to table.

A stage pickles as its settings and loads its model at the first call, in the worker. Rows that are
already quarantined pass through; a row that fails becomes quarantined and keeps its place.
"""
