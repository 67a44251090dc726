"""Images, proposals, segments: the stages and models from which the jobs are put together."""
