"""The command line programs. Each module parses its flags before it imports torch, so that --help answers at once."""
