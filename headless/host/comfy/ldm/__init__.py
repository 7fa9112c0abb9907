"""Networks. Of these only what packs import is public here."""
