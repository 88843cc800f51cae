"""The proxy: the only part that talks to clients and backends, and where everything is wired.

Read app.py (what is built) and steps.py (what one request goes through) first. front.py takes the
POSTs clients care about; routes.py serves everything else. __main__.py is the command line.
"""

__version__ = "0.1.0"
