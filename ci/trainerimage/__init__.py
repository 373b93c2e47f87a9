"""What `ci/image` does: build, push and test giblet's image with Docker, or without one with buildah. Stdlib only.

    cli.py        the verbs
    inputs.py     what the image is made of, as one hash, and what its labels say
    builders.py   Docker and buildah behind the same few methods
    materials.py  what a build without a registry needs first: wheels, and a base image made by debootstrap
    check.py      the image test: in a container of Docker's, or as a pod of a cluster

Why it is built so, and what was measured: docs/decisions/072-image.md.
"""
