"""What runs leave: folders, tables, pictures, pages."""
