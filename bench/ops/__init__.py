"""Each op beside its rivals, and what each compiled kernel takes."""
