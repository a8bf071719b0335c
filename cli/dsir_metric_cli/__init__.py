"""The command line: parse, fill a dataclass, call the library, write. No science here."""
