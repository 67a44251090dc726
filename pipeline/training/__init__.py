"""Training of the embedded tiny models: plain torch loops, run by `jobs/train_embedded.py`."""
