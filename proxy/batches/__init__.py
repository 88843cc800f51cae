"""Files of requests that may take a day: OpenAI's ``/v1/files`` and ``/v1/batches``.

Each line of a batch is a request like any other, with the limits, policy, cache and books of the
key that made the batch; it only comes from a file, and may wait.
"""
