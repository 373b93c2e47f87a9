"""Parts of ci/bench.py: each module has `rows(options)`, which measures its subject and returns lines of the table."""
