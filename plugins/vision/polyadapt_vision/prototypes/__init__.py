"""Class means as prototypes, session by session."""
