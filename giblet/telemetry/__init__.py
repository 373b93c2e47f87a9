"""What a person or a Prometheus sees of a run: log lines, progress bars, metrics."""
