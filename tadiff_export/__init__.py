"""Export: one checkpoint in, one self-describing engine bundle out."""
