"""A campaign of faults: random streams, kills, damaged files and hostile arguments, each of which must end well."""
