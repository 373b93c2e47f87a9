"""Parts of ci/bench.py."""
