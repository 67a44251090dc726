"""What a command prints when it is done, and its exit code: results on stdout, talk on stderr."""
