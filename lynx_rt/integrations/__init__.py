"""lynx_rt within other frameworks. Each module needs the extra that it names."""
