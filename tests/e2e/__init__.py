"""End-to-end scenes for any cluster in KUBECONFIG that has a node with huge pages.

The scenes install the chart with helm, as a user does. They run on every kind of cluster, and reach
the node through a privileged pod.
"""
