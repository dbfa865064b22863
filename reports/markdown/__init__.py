"""A directory of results as one markdown page: tables, a sentence for each, and nothing from outside left unescaped."""
