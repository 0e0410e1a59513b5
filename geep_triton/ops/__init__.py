"""The public function of each op. It checks its arguments and calls the implementation."""
