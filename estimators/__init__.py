"""Estimators: what a request would cost and give on each backend, before it is sent.

types.py holds the values; hardware.py and models.py are facts; roofline.py turns facts into step
physics, with nothing fitted. greybox.py is the same physics with free constants, prior.py its
fitted correction and bands, artefacts.py the file of both. points.py asks the prior of one
request, tables.py works it out over a grid, energy.py answers from those tables for all
candidates and learns through correction.py. steps.py is what an engine's own windows taught.
apis.py, carbon.py and price.py add closed APIs, grams and money; rice.py is a published
yardstick; checks.py the contract of any estimator. The files on quality and length predict what
comes back. Imports only meters.
"""
