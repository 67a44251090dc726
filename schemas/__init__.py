"""What the other packages agree on: Arrow schemas, settings, vocabularies, manifests, errors."""
