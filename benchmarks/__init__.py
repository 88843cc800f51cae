"""Every figure quoted anywhere is printed by a command here.

gateway: what Joulegate costs a request, beside nginx, a bare relay and other gateways.
"""
