"""What people read: the report page, terminal tables and plots."""
