"""What people have: one small reader a format, and a table of them."""
