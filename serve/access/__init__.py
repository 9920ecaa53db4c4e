"""Who may have what: API keys, how much each may take, and the record of what it took."""
