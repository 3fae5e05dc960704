"""Everything that is printed on a terminal."""
