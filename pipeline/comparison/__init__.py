"""Two versions of labels compared: which pixels moved, from what to what, in which images."""
