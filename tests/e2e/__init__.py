"""End-to-end scenes for any cluster that KUBECONFIG names and that has a node with huge pages.

Helm installs the chart, as a user does. The scenes do not depend on how the cluster was made. A
scene reaches the node through a privileged pod.
"""
