"""Training: the paper's, of proposer and prompts, and that of the embedded tiny models.

The latter (captions, clip, pictures, proposer, quality) are plain loops of `jobs/train_embedded`.
"""
