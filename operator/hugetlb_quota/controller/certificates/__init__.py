"""The webhooks' certificates: a CA, admission's certificate and paths, and the trust in them.

- ``authority`` makes and reads certificates.
- ``state`` has the types of the stored state.
- ``stored`` reads and writes that state in Secrets and in the webhook configuration.
- ``rotation`` decides the next write, and is pure.
- ``keeper`` makes the writes.
"""
