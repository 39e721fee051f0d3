"""One question a file: `python -m benchmarks.<question>`."""
