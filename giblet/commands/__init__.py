"""The verbs of the command line, one module a subject; each has `add(verbs)`. Heavy imports happen inside a verb."""
