"""Runs on several Ray nodes: killed, added, cut off, submitted as jobs, launched when needed."""
