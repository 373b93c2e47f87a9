"""`make scale`: what giblet does at 1,024 GPUs, as far as one machine can tell. docs/scale.md has what came out.

cli.py          the options, the order, the table
model70b.py     names and shapes of a 70-billion-parameter model with AdamW's state
counting.py     a store that keeps sizes and counts requests: shards have no bytes
peers.py        the other ranks: what each would say, made without running it
checkpoint.py   saves and a resume of the first rank, through the real code, with a clock and a memory gauge
gauge.py        seconds and peak memory of a piece of work
prices.py       what the requests and the bytes cost
plots.py        docs/images/scale-*.png
"""
