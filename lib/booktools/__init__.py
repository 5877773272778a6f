"""What makes the book and is not read by its readers: execution, batch runs, the ledger."""
