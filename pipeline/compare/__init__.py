"""Two runs or more side by side: first differences, curves and figures."""
