"""Floor 13, the verbs of the command line: thin, over the library. What they need they import when they are called."""
