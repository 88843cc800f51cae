"""Kills parts of a running Joulegate with SIGKILL, under load, and looks whether the books hold.

cluster.py starts the parts: three replicas, Redis, PostgreSQL, a simulated engine and the meter's
agent beside it. run.py sends requests, kills, starts again, and compares in the end what clients
were answered with what is on the books.

    python -m tests.chaos --seconds 600
"""
