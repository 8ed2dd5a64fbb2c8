"""Any network as a producer."""
