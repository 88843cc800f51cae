"""Estimators: what a request would cost and give on each backend, before it is sent.

types.py holds the values; hardware.py and models.py are facts; roofline.py turns facts into step
physics; prior.py corrects them with what published measurements taught; steps.py with what this
engine's own windows taught. quality.py and length.py predict what comes back. Imports only meters.
"""
