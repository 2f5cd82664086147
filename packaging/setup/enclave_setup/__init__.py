"""Sets up the development environment, from the standard library alone: it runs before anything is installed.

`app` does the work, step by step; what is decided (the GPU build, the build's identity, which packages are too many)
stands in pure functions in the other modules.
"""
