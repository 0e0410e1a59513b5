"""Many machines, by Ray: actors that each hold an engine. Only this room knows Ray, and imports it where it is needed."""
