"""Many machines, simulated on this one."""
