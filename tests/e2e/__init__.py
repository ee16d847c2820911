"""End-to-end scenes for any cluster that KUBECONFIG names and that has a node with huge pages.

The chart is installed by helm as a user would. Nothing here knows how the cluster was made; what
a scene needs of the node, it does through a privileged pod.
"""
