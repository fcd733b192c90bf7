"""How masks become payloads: range coder, what both ends know, codecs."""
