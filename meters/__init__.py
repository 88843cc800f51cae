"""Meters: measure, and keep the books.

types.py holds the values every other file speaks in. Files named after a source (nvml, dcgm,
rapl, replay, none, ...) read hardware; engines.py reads inference engines; windows.py and
attribution.py are pure: readings become windows, windows are divided among requests.
journal.py and ledger.py keep what came out. This folder imports none of the others.
"""
