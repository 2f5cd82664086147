"""One module a command, each with its click command as `command`; imported by lazy.py when called."""
