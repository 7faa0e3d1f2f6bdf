"""Results that are written to disk: one type each, with its reader and its writer."""
