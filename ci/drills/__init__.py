"""`make drills`: break things for real, and see whether the promises hold.

cli.py        arguments, the table, the exit code
drill.py      what a drill is, what a row of the table is, what breaks a promise
processes.py  drills on one machine: launchers, ranks and pods that are killed, stopped, stuck
storage.py    drills on one machine: the S3 server gone, slow, refusing; objects damaged by hand
stages.py     drills on one machine: killed at each stage of a save
scene.py      one such drill's run: its real S3 server, the proxy before it, its pods as the operator restarts them
proxy.py      a proxy before the S3 server that drops, delays, throttles and answers for it
inside.py     what is put into the processes that train: a witness of what they do, and faults only they can have
promises.py   what the witness, the store, the ledger and `giblet verify` say in the end
clock.py      a clock that is wrong, for one process
cluster.py    drills on the local cluster with the real operator: pods, nodes, links, memory, API server
lab.py        that cluster, with an elastic release of two workers on it
"""
