"""Tests mirror the four parts, file for file; fakes/ are real servers that behave like upstreams.

``prepare`` installs what wheels cannot bring; ``llama_cpp`` and ``vllm_engine`` start real
inference engines; ``fakes`` start servers that misbehave on purpose.
"""
