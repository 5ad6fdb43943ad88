"""What is put together from the floors above."""
