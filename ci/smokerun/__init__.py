"""What ci/smoke does: install the chart with a small run, follow it, wait for the verdict, leave nothing behind.

cli.py       arguments, the verdict, the exit code
release.py   what helm would and does install
dataset.py   a small prepared dataset in the bucket, if the values name none
cluster.py   the cluster: is all there that a run needs? The job, its pods, their logs
trouble.py   why a pod does not start, long before any timeout
"""
