"""Providers that do not speak OpenAI's API. litellm_sdk.py calls them through the litellm SDK."""
