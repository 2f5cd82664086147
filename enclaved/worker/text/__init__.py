"""Text in, text out: pure code that is shared by all backends."""
