"""`giblet example DIR`: a BIDS data set of a real film and simulated brains, whose best possible score is known."""

from giblet.data.example.write import ExampleSummary, write_example

__all__ = ["ExampleSummary", "write_example"]
