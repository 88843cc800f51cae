"""Policies: which backend should have this request.

limits.py drops candidates that break a hard limit and says why; every other strategy file is one
way to choose among the rest. Everything here is pure: values in, a Decision out.
"""
