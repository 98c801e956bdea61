"""Results as rows, tables, pages."""
