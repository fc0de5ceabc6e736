"""Files of strangers are decoded in processes that may be ended (docs/decisions/0038-decoding-processes.md)."""
