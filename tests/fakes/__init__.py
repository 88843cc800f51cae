"""Real HTTP servers whose every byte a test decides.

upstream: a server that plays scripts of bytes and remembers what it received, on its own thread.
answers: scripts as vLLM and as OpenAI-like providers write them, well-formed and broken.
grid_server: services that tell the carbon intensity of grids.
"""
