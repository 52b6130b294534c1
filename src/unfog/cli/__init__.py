"""The command line: thin, over the library. Verbs import what they need when they are called."""
