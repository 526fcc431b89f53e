"""What runs inside a sandbox: plain modules of the standard library, imported by path. Nothing of bgpo is there."""
