"""A real Kubernetes control plane for tests and the demo, without kubelet and containers.

- `build` builds the programs from the Go modules in go.mod.
- `control_plane` starts the programs on loopback ports. Its parts are `endpoints` (addresses),
  `certificates`, `kubeconfigs` and `service_accounts` (identities), `flags` and `servers`
  (processes), `etcd_data` (backups), and `command` (kubectl and helm).
- `chart` installs the shipped chart. `programs` runs the chart's programs as processes, and
  `containers` runs them as containers (`container`). `cluster` does all of this.
- `api` and `quotas` make requests of tests, and `recorder` is a webhook that records requests.

The product never imports this package.
"""
