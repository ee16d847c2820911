"""A real Kubernetes control plane for tests and the demo, without kubelet and containers.

`build` builds the programs from the Go modules in go.mod, `control_plane` starts them on loopback
ports, `chart` and `programs` install and run the shipped chart, and `cluster` does all of this.
The product never imports this package.
"""
