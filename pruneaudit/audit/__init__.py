"""The referee: rules as pure functions of measured records."""
