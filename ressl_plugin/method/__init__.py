"""ReSSL itself: Algorithm 1 (ressl), Eq. 3-5 (loss), the memory (queue) and the networks."""
