"""Chaos: runs are killed and their store fails at drawn moments; the result must be the same."""
