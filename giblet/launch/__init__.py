"""`giblet launch`: a worker pod's entrypoint. torchrun's part in a cluster, under what Kubernetes lacks.

Exit codes that mean something, a restart budget that knows progress, a hang watch, and the cause of every end kept.

    giblet.launch.run.launch, giblet.launch.server.serve_rendezvous, giblet.launch.settings.read_settings

Nothing is imported here, so that a verb that only wants the settings' names does not wait for torch.
"""
