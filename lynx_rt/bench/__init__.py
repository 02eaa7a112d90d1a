"""Load tests of servers: `lynx-rt bench serve` and what it is made of."""
