"""Programs and schemas with which the chart and the workflows are checked, without a cluster and without root.

tools.py fetches or builds the programs (helm, actionlint, zizmor, admission) into the cache that ci/cluster uses;
schemas.py derives strict schemas of every kind of object that the chart renders. ci/chart and tests/chart use both.
"""
