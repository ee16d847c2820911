"""A real Kubernetes control plane for tests and demo, without kubelet and without containers.

Built from the Go modules in go.mod (`build`), started on loopback ports (`control_plane`),
given what the shipped chart gives a cluster (`chart`, `programs`), and tied together (`cluster`).
The product never imports any of it.
"""
