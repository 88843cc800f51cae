"""Providers that do not speak OpenAI's API. litellm.py calls them through the litellm SDK."""
