"""From raw ABO listings to question/answer pairs: reading, checking, asking, curating. Knows nothing of jobs or torch."""
