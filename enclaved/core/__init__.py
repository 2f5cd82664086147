"""What the daemon decides, and nothing else: a state machine without I/O, clock or chance."""
