"""Each alert made to fire by a real cause: `make alerts-drill`.

Real runs on this machine go wrong for real, a real Prometheus scrapes them, and evaluates the rules that the chart
installs, with one change: their times are shortened by one factor (`scaled`), because nobody waits six hours here.
"""
