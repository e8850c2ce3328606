"""The ledger: what each job used and what that cost."""
