"""The `lynx-rt` command. Standard output carries results only; everything else goes to standard error."""
