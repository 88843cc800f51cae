"""Meters: measure, and keep the books.

types.py holds the values every other file speaks in. Files named after a source (nvml, dcgm,
rapl, replay, none, ...) read hardware; engines.py reads inference engines by the table in
dialects.py; windows.py and attribution.py are pure: readings become windows, windows are divided
among requests. sampler.py runs a meter in a thread; agent.py is that as a program of its own, and
intake.py is what the proxy does with the windows it sends.
journal.py and ledger.py keep what came out. This folder imports none of the others.
"""
