"""The controller: recounts what is charged, and says on every quota how it stands.

One is active, by Lease. It writes nothing but the status of HugeTLBQuotas, their
finalizer and Events; pods are only read.
"""
