"""One page that shows what a calibrated model promises, what it gains, and where exits do not pay."""
