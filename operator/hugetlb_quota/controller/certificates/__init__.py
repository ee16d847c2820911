"""The operator's own certificates: a CA, what admission serves with, and who is told of them.

``authority`` makes and reads certificates, ``rotation`` decides what is to be done next and is
pure, ``stored`` puts it into Secrets and the webhook configuration, ``keeper`` does the steps.
"""
