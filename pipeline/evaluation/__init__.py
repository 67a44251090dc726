"""Measuring labels and proposals against a truth, in parts that add up."""
