"""Why one pixel has its label."""
