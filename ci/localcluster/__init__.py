"""What `ci/cluster` does: find, or build and start, a Kubernetes cluster with all that giblet needs. Stdlib only.

    cli.py           the verbs, and which kind of cluster to use
    settings.py      folders, addresses, versions: every constant
    steps.py         says what is being done, how long it took, and about how long is left
    shell.py         run a command or fail with its output; wait for something
    tools.py         binaries: Go builds, Debian packages unpacked, a wheel; cached outside the checkout
    images.py        minimal container images from static binaries, pushed to the local registry
    machine.py       a "machine": one process in its own network, mount and pid namespace; killing it ends all in it
    pki.py           certificates and kubeconfigs
    controlplane.py  etcd, apiserver, controllers, registry, and the way in from the host's loopback
    node.py          containerd, kubelet and kube-proxy of one node
    addons.py        CoreDNS, operator, S3 and Prometheus, applied from k8s/
    local.py         a cluster built from these parts: up, down, status
    trainer_image.py  giblet's own image: built by ci/image's package, pushed here, pulled on each node
    external.py      the same verbs on a cluster in KUBECONFIG, or on kind
    forward.py       a TCP forwarder from the host's loopback into the control plane's namespace

Why machines are namespaces, and what was measured: docs/decisions/070-local-cluster.md.
"""
