"""The controller: recounts what is charged, and says on every quota how it stands.

One is active, by Lease. It writes the status of HugeTLBQuotas, their finalizers, a label on those
that are deleted and kopf's annotations, the spec of HugeTLBNodes, and Events; pods, Nodes and
namespaces are only read.
"""
