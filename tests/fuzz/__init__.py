"""Long searches for input that breaks something; run by `make fuzz`, not by `make test`."""
