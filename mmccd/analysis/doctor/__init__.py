"""The environment: a report for bug reports, and known problems with the commands that fix them."""
